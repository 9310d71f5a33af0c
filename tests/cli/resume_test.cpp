// --resume believes no checkpoint that is damaged, says which one it passed over, and never starts
// afresh by itself.
#include <doctest/doctest.h>

#include "cli/small_run.h"

namespace pelago::testing {
namespace {

void damage(const fs::path& file) {
  std::string bytes = read_all(file);
  REQUIRE_FALSE(bytes.empty());
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  write_all(file, bytes);
}

TEST_CASE("a damaged newest checkpoint is named, the one before it is resumed from") {
  const Scratch scratch("fall-back");
  prepare(scratch.path());
  const fs::path run_dir = scratch.path() / "runs" / "test";
  const fs::path checkpoints = run_dir / "sites" / "room" / "checkpoints";
  REQUIRE(run(scratch.path(), train("one.toml")).exit_code == 0);
  const auto curve = loss_curve(run_dir, "room");
  damage(checkpoints / "step-24" / "weights.safetensors");
  fs::resize_file(checkpoints / "step-16" / "optimizer.safetensors", 1000);
  const Ended resumed = run(scratch.path(), train("one.toml", {"--resume"}));
  INFO(resumed.err);
  CHECK(resumed.exit_code == 0);
  CHECK(contains(resumed.err, "step=24"));
  CHECK(contains(resumed.err, "weights.safetensors is damaged"));
  CHECK(contains(resumed.err, "step-16/optimizer.safetensors has 1000 bytes"));
  CHECK(contains(resumed.err, "from=step-8"));
  CHECK(loss_curve(run_dir, "room") == curve);

  for (const auto& checkpoint : fs::directory_iterator(checkpoints)) {
    damage(checkpoint.path() / "state.json");
  }
  const auto metrics = read_all(run_dir / "metrics.jsonl");
  const Ended refused = run(scratch.path(), train("one.toml", {"--resume"}));
  INFO(refused.err);
  CHECK(refused.exit_code == 1);
  CHECK(contains(refused.err, "no good checkpoint"));
  CHECK(contains(refused.err, "--fresh"));
  CHECK(read_all(run_dir / "metrics.jsonl") == metrics);  // it did not start afresh
}

TEST_CASE("sites go back together to the newest checkpoint that is good at all of them") {
  const Scratch scratch("fall-back-sites");
  prepare(scratch.path());
  const fs::path run_dir = scratch.path() / "runs" / "test";
  REQUIRE(run(scratch.path(), train("two.toml")).exit_code == 0);
  const auto curve = loss_curve(run_dir, "guizhou");
  damage(run_dir / "sites" / "lingang" / "checkpoints" / "step-24" / "sites.safetensors");
  const Ended resumed = run(scratch.path(), train("two.toml", {"--resume"}));
  INFO(resumed.err);
  CHECK(resumed.exit_code == 0);
  CHECK(contains(resumed.err, "sites.safetensors is damaged"));
  CHECK(contains(resumed.err, "site=lingang"));
  CHECK(loss_curve(run_dir, "guizhou") == curve);

  // One that has none fetches the others' weights; where there is nothing to fetch, nothing begins.
  fs::remove_all(run_dir / "sites" / "guizhou" / "checkpoints");
  fs::remove_all(run_dir / "sites" / "lingang" / "checkpoints" / "step-24");
  const Ended joined = run(scratch.path(), train("two.toml", {"--resume"}));
  INFO(joined.err);
  CHECK(joined.exit_code == 0);
  CHECK(contains(joined.err, "site without checkpoint site=guizhou step=17"));

  for (const char* site : {"guizhou", "lingang"}) {
    fs::remove_all(run_dir / "sites" / site / "checkpoints");
  }
  const Ended refused = run(scratch.path(), train("two.toml", {"--resume"}));
  INFO(refused.err);
  CHECK(refused.exit_code == 1);
  CHECK(contains(refused.err, "no good checkpoint"));
  CHECK(contains(refused.err, "--fresh"));
  CHECK(processes_in(scratch.path()).empty());
}

}  // namespace
}  // namespace pelago::testing
