// The disk fills up: what was whole stays whole, a run goes on and says so, what cannot go on says
// why in one line.
#include <doctest/doctest.h>

#include "cli/small_disk.h"
#include "cli/small_run.h"

namespace pelago::testing {
namespace {

size_t num_entries(const fs::path& folder) {
  return static_cast<size_t>(
      std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

/// The last line that the program itself wrote, and that there is only one such.
std::string only_complaint(const Ended& ended) {
  const size_t at = ended.err.rfind("pelago: ");
  REQUIRE(at != std::string::npos);
  CHECK(std::count(ended.err.begin() + static_cast<std::ptrdiff_t>(at), ended.err.end(), '\n') ==
        1);
  return ended.err.substr(at);
}

/// How many checkpoints have their name; sites take one at the first step that is quiet.
size_t num_checkpoints(const fs::path& checkpoints) {
  size_t count = 0;
  std::error_code gone;
  for (const auto& entry : fs::directory_iterator(checkpoints, gone)) {
    count += contains(entry.path().filename(), "step-") && entry.path().extension() != ".tmp";
  }
  return count;
}

TEST_CASE("a dataset that does not fit the disk is refused by name and leaves nothing there") {
  const Scratch scratch("full-data");
  write_corpus(scratch.path());
  SmallDisk disk(scratch.path() / "disk", 64);
  if (!disk.is_here()) {
    MESSAGE(kNeedsRoot);
    return;
  }
  const Ended ended = run(scratch.path(),
                          {"data",
                           "build",
                           "--from",
                           "corpus",
                           "--glob",
                           "*.h",
                           "--out",
                           "disk/d",
                           "--vocab-size",
                           "400"});
  INFO(ended.err);
  CHECK(ended.exit_code == 1);
  const std::string line = only_complaint(ended);
  CHECK(contains(line, "disk/d"));
  CHECK(contains(line, "No space left"));
  CHECK(num_entries(disk.folder()) == 0);
}

TEST_CASE(
    "a disk that is full while a checkpoint is saved costs that checkpoint and nothing else") {
  const Scratch scratch("full-save");
  prepare(scratch.path());
  SmallDisk disk(scratch.path() / "disk", 32 << 10);
  if (!disk.is_here()) {
    MESSAGE(kNeedsRoot);
    return;
  }
  const fs::path run_dir = disk.folder() / "test";
  const fs::path checkpoints = run_dir / "sites" / "room" / "checkpoints";
  Program program(scratch.path(),
                  train("one.toml",
                        {"--set",
                         "runs_dir=disk",
                         "--set",
                         "train.steps=64",
                         "--set",
                         "emulation.slowdown=600"}));
  REQUIRE(program.wait_for([&] { return fs::exists(checkpoints / "step-8"); }, 120));
  disk.fill();
  REQUIRE(program.wait_for([&] { return contains(program.err_so_far(), "not saved"); }, 120));
  CHECK(fs::exists(checkpoints / "step-8" / "manifest.json"));
  CHECK(half_made(run_dir).empty());
  disk.free_again();
  const Ended ended = program.wait();
  INFO(ended.err);
  CHECK(ended.exit_code == 0);
  CHECK(contains(ended.err, "No space left"));
  CHECK(contains(ended.err, "training goes on"));
  CHECK(fs::exists(checkpoints / "step-64" / "manifest.json"));
  CHECK(fs::exists(run_dir / "model" / "model.safetensors"));
}

TEST_CASE("sites whose disk stays full train to the end, and the run goes on once there is room") {
  const Scratch scratch("full-sites");
  prepare(scratch.path());
  SmallDisk disk(scratch.path() / "disk", 32 << 10);
  if (!disk.is_here()) {
    MESSAGE(kNeedsRoot);
    return;
  }
  const fs::path sites = disk.folder() / "test" / "sites";
  const std::vector<std::string> slow = {
      "--set", "runs_dir=disk", "--set", "train.steps=48", "--set", "emulation.slowdown=600"};
  Program program(scratch.path(), train("two.toml", slow));
  REQUIRE(program.wait_for(
      [&] {
        return num_checkpoints(sites / "lingang" / "checkpoints") > 0 &&
               num_checkpoints(sites / "guizhou" / "checkpoints") > 0;
      },
      120));
  disk.fill();
  const Ended ended = program.wait();
  INFO(ended.err);
  CHECK(ended.exit_code == 1);  // the model cannot be exported
  CHECK(contains(only_complaint(ended), "no model was exported"));
  CHECK(contains(ended.err, "the journal waits in memory"));
  CHECK(contains(ended.err, "step 48: held-out loss"));  // it did train on
  CHECK(half_made(disk.folder()).empty());
  CHECK(processes_in(scratch.path()).empty());

  disk.free_again();
  auto resume = slow;
  resume.push_back("--resume");
  const Ended resumed = run(scratch.path(), train("two.toml", resume));
  INFO(resumed.err);
  CHECK(resumed.exit_code == 0);
  CHECK(fs::exists(disk.folder() / "test" / "model" / "model.safetensors"));
}

TEST_CASE("a model that does not fit the disk is not exported by half") {
  const Scratch scratch("full-export");
  prepare(scratch.path());
  REQUIRE(run(scratch.path(), train("one.toml")).exit_code == 0);
  SmallDisk disk(scratch.path() / "disk", 64);
  if (!disk.is_here()) {
    MESSAGE(kNeedsRoot);
    return;
  }
  const Ended ended = run(scratch.path(), {"export", "runs/test", "--out", "disk/model"});
  INFO(ended.err);
  CHECK(ended.exit_code == 1);
  CHECK(contains(only_complaint(ended), "No space left"));
  CHECK(num_entries(disk.folder()) == 0);
}

}  // namespace
}  // namespace pelago::testing
