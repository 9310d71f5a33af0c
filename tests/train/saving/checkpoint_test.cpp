#include "train/checkpoint.h"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "base/files.h"
#include "train/scratch_folder.h"

namespace pelago::train {
namespace {

namespace fs = std::filesystem;

void save_or_fail(const fs::path& checkpoints, int64_t step, int64_t keep = 3) {
  const fs::path dir = begin_checkpoint(checkpoints, step);
  write_file(dir / "weights.safetensors", "weights of step " + std::to_string(step));
  TrainState state;
  state.step = step;
  write_file(dir / "state.json", to_json(state));
  REQUIRE(finish_checkpoint(checkpoints, step, keep));
}

/// While it lives, no file of this process can be written past 4 KB: a disk that fills up.
class FullDisk {
 public:
  FullDisk() {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    old_action_ = ::signal(SIGXFSZ, SIG_IGN);
    const rlimit tight{4096, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &tight);
  }
  ~FullDisk() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, old_action_);
  }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;

 private:
  rlimit before_{};
  void (*old_action_)(int) = SIG_DFL;
};

TEST_CASE("a checkpoint that was finished is good and its state comes back") {
  const ScratchFolder scratch("checkpoint-good");
  save_or_fail(scratch.path(), 50);
  CHECK(verify_checkpoint(checkpoint_path(scratch.path(), 50)).empty());
  CHECK(good_checkpoints(scratch.path()) == std::vector<int64_t>{50});
  TrainState state;
  state.step = 1234567890123;
  state.tokens = 9876543210987;
  state.seed = 0xffffffffffffffffULL;
  state.adam_steps = 99;
  state.loss_scale = 0.125;
  state.model_hash = "abc";
  const TrainState back = train_state_from_json(to_json(state), "state.json");
  CHECK(to_json(back) == to_json(state));
  CHECK(back.seed == state.seed);
}

TEST_CASE("a checkpoint that was begun and not finished is never listed") {
  const ScratchFolder scratch("checkpoint-half");
  save_or_fail(scratch.path(), 50);
  const fs::path half = begin_checkpoint(scratch.path(), 100);
  write_file(half / "weights.safetensors", "half");
  CHECK(good_checkpoints(scratch.path()) == std::vector<int64_t>{50});
  // Nobody finishes it: it goes with the next one that is.
  write_file(scratch.path() / ".step-x.tmp", "not ours");
  const fs::path later = begin_checkpoint(scratch.path(), 150);
  save_or_fail(scratch.path(), 120);
  CHECK_FALSE(fs::exists(half));
  CHECK(fs::exists(later));
  CHECK(fs::exists(scratch.path() / ".step-x.tmp"));
  CHECK(good_checkpoints(scratch.path()).back() == 120);
}

TEST_CASE("a damaged, shortened or missing file is named and the checkpoint passed over") {
  const ScratchFolder scratch("checkpoint-bad");
  for (const int64_t step : {10, 20, 30, 40}) save_or_fail(scratch.path(), step, 9);
  const auto at = [&](int64_t step) { return checkpoint_path(scratch.path(), step); };
  write_file(at(20) / "weights.safetensors", "Weights of step 20");  // one letter
  fs::resize_file(at(30) / "state.json", 5);
  fs::remove(at(40) / "weights.safetensors");
  CHECK(verify_checkpoint(at(20)).find("weights.safetensors is damaged") != std::string::npos);
  CHECK(verify_checkpoint(at(30)).find("state.json has 5 bytes") != std::string::npos);
  CHECK(verify_checkpoint(at(40)).find("weights.safetensors is missing") != std::string::npos);
  CHECK(good_checkpoints(scratch.path()) == std::vector<int64_t>{10});
  write_file(at(10) / "manifest.json", "{}");
  CHECK(verify_checkpoint(at(10)).find("manifest.json is damaged") != std::string::npos);
}

TEST_CASE("only the newest checkpoints stay, and always the one just saved") {
  const ScratchFolder scratch("checkpoint-keep");
  for (const int64_t step : {10, 20, 30, 40}) save_or_fail(scratch.path(), step, 2);
  CHECK(good_checkpoints(scratch.path()) == std::vector<int64_t>{30, 40});
  // The newest is damaged, the run goes back to 30 and saves 35 under keep = 1: were the damaged 40
  // counted as the newest, the only good one would go.
  write_file(checkpoint_path(scratch.path(), 40) / "state.json", "damaged");
  save_or_fail(scratch.path(), 35, 1);
  CHECK(good_checkpoints(scratch.path()) == std::vector<int64_t>{35});
  CHECK_FALSE(fs::exists(checkpoint_path(scratch.path(), 40)));
}

TEST_CASE("a step that is saved again replaces the older folder of its name") {
  const ScratchFolder scratch("checkpoint-again");
  save_or_fail(scratch.path(), 10);
  write_file(checkpoint_path(scratch.path(), 10) / "state.json", "damaged");
  save_or_fail(scratch.path(), 10);
  CHECK(good_checkpoints(scratch.path()) == std::vector<int64_t>{10});
  CHECK(std::distance(fs::directory_iterator(scratch.path()), {}) == 1);
}

TEST_CASE("a full disk leaves the older checkpoint whole and no half one behind") {
  const ScratchFolder scratch("checkpoint-full");
  save_or_fail(scratch.path(), 10);
  const fs::path dir = begin_checkpoint(scratch.path(), 20);
  for (int i = 0; i < 60; ++i) {  // their manifest is longer than 4 KB
    write_file(dir / (std::to_string(i) + ".safetensors"), "x");
  }
  {
    const FullDisk full;
    const Status status = finish_checkpoint(scratch.path(), 20, 1);
    REQUIRE_FALSE(status);
    CHECK(status.error().message.find("manifest.json") != std::string::npos);
  }
  CHECK(good_checkpoints(scratch.path()) == std::vector<int64_t>{10});
  CHECK(std::distance(fs::directory_iterator(scratch.path()), {}) == 1);
}

TEST_CASE("a real file system without space says so and keeps what it has") {
  const ScratchFolder scratch("checkpoint-tmpfs");
  if (::mount("tmpfs", scratch.path().c_str(), "tmpfs", 0, "size=64k") != 0) {
    MESSAGE("skipped: mounting a small tmpfs needs root");
    return;
  }
  save_or_fail(scratch.path(), 10);
  const fs::path dir = begin_checkpoint(scratch.path(), 20);
  std::string chunk(4096, 'x');
  int written = 0;
  while (written < 64 && try_write_file(dir / std::to_string(written), chunk)) ++written;
  CHECK(written < 16);  // the disk did fill up
  const Status status = finish_checkpoint(scratch.path(), 20, 1);
  CHECK_FALSE(status);
  if (!status) CHECK(status.error().code == ErrorCode::kNoSpace);
  CHECK(good_checkpoints(scratch.path()) == std::vector<int64_t>{10});
  ::umount(scratch.path().c_str());
}

TEST_CASE("a checkpoint of another model is refused and the difference named") {
  TrainState found, expected;
  found.model_hash = "aaaa";
  expected.model_hash = "bbbb";
  CHECK_THROWS_WITH_AS(refuse_other_run(found, expected, "step-50"),
                       "step-50: made with another model (hash aaaa, this run has bbbb): take the "
                       "run's own model, or start anew with --fresh",
                       Failure);
  expected = found;
  CHECK_NOTHROW(refuse_other_run(found, expected, "step-50"));
}

TEST_CASE("a checkpoint of another optimizer is refused; one that names none is AdamW's") {
  TrainState found, expected;
  expected.optimizer = "muon";
  CHECK_THROWS_WITH_AS(
      refuse_other_run(found, expected, "step-50"),
      "step-50: made with train.optimizer = \"adamw\", this run has \"muon\": take "
      "\"adamw\", or start anew with --fresh",
      Failure);
  CHECK(train_state_from_json(to_json(expected), "state.json").optimizer == "muon");
  std::string text = to_json(expected);
  const std::string field = "\"optimizer\": \"muon\",";
  REQUIRE(text.find(field) != std::string::npos);
  text.erase(text.find(field), field.size());
  CHECK(train_state_from_json(text, "state.json").optimizer == "adamw");
}

}  // namespace
}  // namespace pelago::train
