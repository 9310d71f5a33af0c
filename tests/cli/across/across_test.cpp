// One pipeline over two sites, as a user runs it: real processes, TLS, a line that is emulated in
// the transport.
#include <doctest/doctest.h>
#include <signal.h>

#include <algorithm>

#include "cli/small_run.h"

namespace pelago::testing {
namespace {

constexpr const char* kApart = R"(
[emulation]
slowdown = 100
[[site]]
name = "lingang"
[[site.device]]
device = "emulated:h20"
[[site]]
name = "guizhou"
[[site.device]]
device = "emulated:a100"
[[link]]
between = ["lingang", "guizhou"]
bandwidth_mbit_s = 1000
rtt_ms = 20
emulate = true
)";

constexpr const char* kAlone = R"(
[emulation]
slowdown = 100
[[site]]
name = "guizhou"
[[site.device]]
device = "emulated:a100"
)";

constexpr const char* kTogether = R"(
[emulation]
slowdown = 100
[[site]]
name = "room"
[[site.device]]
device = "emulated:h20"
[[site.device]]
device = "emulated:a100"
)";

void prepare_across(const fs::path& folder) {
  prepare(folder);
  write_all(folder / "apart.toml", kApart);
  write_all(folder / "together.toml", kTogether);
  write_all(folder / "alone.toml", kAlone);
}

std::vector<std::string> in_step(const std::string& fleet,
                                 const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments = train(fleet,
                                             {"--set",
                                              "sites.across=pipeline",
                                              "--set",
                                              "train.pipeline=always",
                                              "--set",
                                              "train.microbatch_sequences=1",
                                              "--set",
                                              "train.exact_batch=true"});
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

size_t num_events(const fs::path& run, const std::string& name) {
  size_t count = 0;
  std::ifstream events(run / "events.jsonl");
  for (std::string line; std::getline(events, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    count += !json.is_discarded() && json.value("event", "") == name ? 1 : 0;
  }
  return count;
}

TEST_CASE("two stages in two sites give the losses of the same stages in one, bit for bit") {
  const Scratch scratch("across");
  prepare_across(scratch.path());
  const fs::path run_dir = scratch.path() / "runs" / "test";
  const Ended together = run(scratch.path(), in_step("together.toml"));
  INFO(together.err);
  REQUIRE(together.exit_code == 0);
  const auto expected = loss_curve(run_dir, "room");
  REQUIRE(expected.size() == 24);
  const Ended apart = run(scratch.path(), in_step("apart.toml", {"--fresh"}));
  INFO(apart.err);
  REQUIRE(apart.exit_code == 0);
  CHECK(loss_curve(run_dir, "lingang") == expected);
  CHECK(loss_curve(run_dir, "guizhou") == expected);
  CHECK(fs::exists(run_dir / "model" / "model.safetensors"));
  // Every site has the whole of every checkpoint.
  for (const char* file : {"weights.safetensors", "optimizer.safetensors", "manifest.json"}) {
    const auto at = [&](const char* site) {
      return read_all(run_dir / "sites" / site / "checkpoints" / "step-24" / file);
    };
    CHECK(at("lingang").size() > 0);
    CHECK(at("lingang") == at("guizhou"));
  }
  CHECK(processes_in(scratch.path()).empty());
}

TEST_CASE(
    "sites in step that are stopped and resumed end with the same losses, and one of them alone "
    "with nearly the same") {
  const Scratch scratch("across-term");
  prepare_across(scratch.path());
  const fs::path run_dir = scratch.path() / "runs" / "test";
  REQUIRE(run(scratch.path(), in_step("apart.toml")).exit_code == 0);
  const auto expected = loss_curve(run_dir, "lingang");
  REQUIRE(expected.size() == 24);
  fs::remove_all(run_dir);
  Program second(scratch.path(), in_step("apart.toml"));
  REQUIRE(second.wait_for([&] { return reached(run_dir, "lingang", 5); }, 120));
  second.signal(SIGTERM);
  const Ended stopped = second.wait();
  INFO(stopped.err);
  CHECK(stopped.exit_code == 0);
  const size_t stopped_at = loss_curve(run_dir, "lingang").size();
  REQUIRE(stopped_at < 24);
  const fs::path kept = scratch.path() / "kept";
  fs::copy(run_dir, kept, fs::copy_options::recursive);
  const Ended third = run(scratch.path(), in_step("apart.toml", {"--resume"}));
  INFO(third.err);
  REQUIRE(third.exit_code == 0);
  CHECK(loss_curve(run_dir, "lingang") == expected);
  CHECK(processes_in(scratch.path()).empty());

  // One of them goes on without the other, with all of the batch.
  fs::remove_all(run_dir);
  fs::rename(kept, run_dir);
  const Ended alone = run(scratch.path(), train("alone.toml", {"--resume"}));
  INFO(alone.err);
  REQUIRE(alone.exit_code == 0);
  const auto curve = loss_curve(run_dir, "guizhou");
  REQUIRE(curve.size() == 24);
  CHECK(contains(alone.err, fmt::format("resumed from=step-{}", stopped_at)));
  for (size_t step = stopped_at; step < 24; ++step) {
    CHECK(std::stod(curve[step]) == doctest::Approx(std::stod(expected[step])).epsilon(0.01));
  }
}

TEST_CASE("a site in step that is killed comes back, and all go on from a checkpoint they share") {
  const Scratch scratch("across-kill");
  prepare_across(scratch.path());
  const fs::path run_dir = scratch.path() / "runs" / "test";
  REQUIRE(run(scratch.path(), in_step("apart.toml")).exit_code == 0);
  const auto expected = loss_curve(run_dir, "lingang");
  for (const std::string kind : {"agent", "worker"}) {
    CAPTURE(kind);
    fs::remove_all(run_dir);
    Program program(scratch.path(), in_step("apart.toml"));
    REQUIRE(program.wait_for([&] { return reached(run_dir, "lingang", 12); }, 120));
    pid_t victim = 0;
    for (const pid_t pid : processes_in(scratch.path())) {
      std::string line = read_all(fmt::format("/proc/{}/cmdline", pid));
      std::replace(line.begin(), line.end(), '\0', ' ');
      const bool is_kind = contains(line, " " + kind + " ");
      if (is_kind && contains(line, "guizhou")) victim = pid;
    }
    REQUIRE(victim != 0);
    ::kill(victim, SIGKILL);
    const Ended ended = program.wait();
    INFO(ended.err);
    CHECK(ended.exit_code == 0);
    CHECK(num_events(run_dir, "restarting_together") >= 1);
    CHECK(loss_curve(run_dir, "lingang") == expected);
    CHECK(processes_in(scratch.path()).empty());
  }
}

TEST_CASE(
    "a site in step that lost its disk fetches the checkpoint and all end with the same losses; "
    "where all lost it, that is said and nothing begins afresh") {
  const Scratch scratch("across-disk");
  prepare_across(scratch.path());
  const fs::path run_dir = scratch.path() / "runs" / "test";
  const auto disk = [&](const char* site) { return run_dir / "sites" / site / "checkpoints"; };
  REQUIRE(run(scratch.path(), in_step("apart.toml")).exit_code == 0);
  const auto expected = loss_curve(run_dir, "lingang");
  REQUIRE(expected.size() == 24);
  fs::remove_all(run_dir);
  Program first(scratch.path(), in_step("apart.toml"));
  REQUIRE(first.wait_for([&] { return reached(run_dir, "lingang", 8); }, 120));
  first.signal(SIGTERM);
  REQUIRE(first.wait().exit_code == 0);
  const size_t stopped_at = loss_curve(run_dir, "lingang").size();
  REQUIRE(stopped_at < 24);
  const fs::path kept = scratch.path() / "kept";
  fs::copy(run_dir, kept, fs::copy_options::recursive);
  fs::remove_all(disk("guizhou"));
  const Ended second = run(scratch.path(), in_step("apart.toml", {"--resume"}));
  INFO(second.err);
  REQUIRE(second.exit_code == 0);
  CHECK(num_events(run_dir, "checkpoint_fetched") == 1);
  CHECK(loss_curve(run_dir, "lingang") == expected);
  CHECK(loss_curve(run_dir, "guizhou") == expected);

  fs::remove_all(run_dir);
  fs::rename(kept, run_dir);
  for (const char* site : {"lingang", "guizhou"}) fs::remove_all(disk(site));
  const Ended third = run(scratch.path(), in_step("apart.toml", {"--resume"}));
  INFO(third.err);
  CHECK(third.exit_code == 1);
  CHECK(contains(third.err, fmt::format("the model of step {}, of which site", stopped_at)));
  CHECK(contains(third.err, "is lost: put its folder"));
  CHECK(contains(third.err, "start afresh with --fresh"));
  CHECK(processes_in(scratch.path()).empty());
}

}  // namespace
}  // namespace pelago::testing
