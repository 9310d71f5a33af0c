// A site that loses a device goes on without it, and takes it back: whole runs with real processes.
#include <doctest/doctest.h>

#include "cli/small_run.h"

namespace pelago::testing {
namespace {

/// The events of one name, in order.
std::vector<nlohmann::json> events(const fs::path& run, const std::string& name) {
  std::vector<nlohmann::json> found;
  std::ifstream in(run / "events.jsonl");
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (!json.is_discarded() && json.value("event", "") == name) found.push_back(json);
  }
  return found;
}

/// Steps of a site as they stand in metrics.jsonl.
std::vector<int> reported_steps(const fs::path& run, const std::string& site) {
  std::vector<int> steps;
  std::ifstream in(run / "metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (json.is_discarded() || json.value("kind", "") != "step" || json.value("site", "") != site) {
      continue;
    }
    steps.push_back(json["step"].get<int>());
  }
  return steps;
}

std::vector<int> first_steps(int count) {
  std::vector<int> steps;
  for (int step = 1; step <= count; ++step) steps.push_back(step);
  return steps;
}

/// name: what the process calls itself, pelago-worker or pelago-spare.
pid_t process_of(const fs::path& folder,
                 const std::string& site,
                 int rank,
                 const std::string& name) {
  const std::string text = fmt::format("/{} --site-idx", site);
  for (const pid_t pid : processes_in(folder)) {
    if (read_all(fmt::format("/proc/{}/comm", pid)) != name + "\n") continue;
    std::string line = read_all(fmt::format("/proc/{}/cmdline", pid));
    for (char& c : line) {
      if (c == '\0') c = ' ';
    }
    if (contains(line, text) && contains(line, fmt::format("--rank {}", rank))) return pid;
  }
  return -1;
}

pid_t worker(const fs::path& folder, const std::string& site, int rank) {
  return process_of(folder, site, rank, "pelago-worker");
}

pid_t spare(const fs::path& folder, const std::string& site, int rank) {
  return process_of(folder, site, rank, "pelago-spare");
}

void set(const fs::path& file, const std::string& from, const std::string& to) {
  std::string text = read_all(file);
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  write_all(file, text.replace(at, from.size(), to));
}

TEST_CASE(
    "a killed worker costs seconds: the others repeat a few steps and go on, and it comes back") {
  const Scratch scratch("worker");
  prepare(scratch.path());
  set(scratch.path() / "job.toml", "steps = 24", "steps = 120");
  const fs::path run_dir = scratch.path() / "runs" / "test";
  Program program(scratch.path(), train("one.toml"));
  REQUIRE(program.wait_for([&] { return reached(run_dir, "room", 20); }, 120));
  const pid_t victim = worker(scratch.path(), "room", 1);
  REQUIRE(victim > 0);
  ::kill(victim, SIGKILL);
  const Ended ended = program.wait();
  INFO(ended.err);
  REQUIRE(ended.exit_code == 0);
  CHECK(reported_steps(run_dir, "room") == first_steps(120));  // each once, none missing
  const auto lost = events(run_dir, "device_lost");
  REQUIRE(lost.size() == 1);
  CHECK(lost[0]["rank"] == 1);
  CHECK(contains(lost[0]["why"], "was killed by signal 9"));
  const auto recovered = events(run_dir, "recovered");
  REQUIRE(recovered.size() == 1);
  // Back to the newest checkpoint, or to the one before it where that was not saved yet. On a quiet
  // machine it takes less than 8 s.
  CHECK(recovered[0]["steps_repeated"].get<int>() <= 17);
  CHECK(recovered[0]["time"].get<double>() - lost[0]["time"].get<double>() <= 60);
  CHECK(fs::exists(run_dir / "plan-1.json"));
  const auto curve = loss_curve(run_dir, "room");
  CHECK(std::stod(curve.back()) < 0.5 * std::stod(curve.front()));
  CHECK(processes_in(scratch.path()).empty());
}

TEST_CASE("one of two sites loses a worker, and the other hears nothing of it") {
  const Scratch scratch("worker-of-two");
  prepare(scratch.path());
  set(scratch.path() / "job.toml", "steps = 24", "steps = 64");
  const fs::path run_dir = scratch.path() / "runs" / "test";
  Program program(scratch.path(), train("two.toml"));
  REQUIRE(program.wait_for([&] { return reached(run_dir, "guizhou", 15); }, 120));
  const pid_t victim = worker(scratch.path(), "guizhou", 0);
  REQUIRE(victim > 0);
  pid_t successor = -1;
  REQUIRE(program.wait_for(
      [&] {
        successor = spare(scratch.path(), "guizhou", 0);
        return successor > 0;
      },
      60));
  ::kill(victim, SIGKILL);
  // Who has loaded its libraries already takes over, and another one gets ready.
  const auto has_taken_over = [&] { return worker(scratch.path(), "guizhou", 0) == successor; };
  CHECK(program.wait_for(has_taken_over, 60));
  const Ended ended = program.wait();
  INFO(ended.err);
  REQUIRE(ended.exit_code == 0);
  CHECK(events(run_dir, "device_lost").size() == 1);
  CHECK(events(run_dir, "recovered").size() == 1);
  CHECK(events(run_dir, "site_lost").empty());
  CHECK(reported_steps(run_dir, "guizhou") == first_steps(64));
  CHECK(reported_steps(run_dir, "lingang") == first_steps(64));
  CHECK(fs::exists(run_dir / "model" / "model.safetensors"));
}

TEST_CASE(
    "a chip that computes wrong is done without, and one line says so if nobody else is left") {
  const Scratch scratch("wrong");
  prepare(scratch.path());
  const std::string sick = "device = \"emulated:h20\"\nfaults = [\"wrong@p=0.5,seed=3\"]";
  set(scratch.path() / "one.toml", "device = \"emulated:h20\"", sick);
  const fs::path run_dir = scratch.path() / "runs" / "test";
  const Ended ended = run(scratch.path(), train("one.toml"));
  INFO(ended.err);
  REQUIRE(ended.exit_code == 0);
  const auto lost = events(run_dir, "device_lost");
  REQUIRE(!lost.empty());
  CHECK(contains(lost[0]["why"], "computes wrong"));
  CHECK(reported_steps(run_dir, "room") == first_steps(24));

  fs::remove_all(run_dir);
  set(scratch.path() / "one.toml", "[[site.device]]\ndevice = \"emulated:a100\"", "");
  const Ended alone = run(scratch.path(), train("one.toml"));
  CHECK(alone.exit_code == 1);
  CHECK(contains(alone.err, "computes wrong"));
  CHECK(contains(alone.err, "has lost all its devices"));
}

/// A site of two devices of which the second breaks in this way, while it trains for 60 steps.
Ended run_with_fault(const Scratch& scratch, const std::string& fault) {
  prepare(scratch.path());
  set(scratch.path() / "job.toml", "steps = 24", "steps = 60");
  set(scratch.path() / "one.toml",
      "device = \"emulated:h20\"",
      fmt::format("device = \"emulated:h20\"\nfaults = [\"{}\"]", fault));
  return run(scratch.path(), train("one.toml"));
}

/// What was said when the device was lost first; every step was done once all the same.
std::string why_lost(const Scratch& scratch, const Ended& ended) {
  INFO(ended.err);
  REQUIRE(ended.exit_code == 0);
  const fs::path run_dir = scratch.path() / "runs" / "test";
  CHECK(reported_steps(run_dir, "room") == first_steps(60));
  CHECK(events(run_dir, "recovered").size() >= 1);
  CHECK(processes_in(scratch.path()).empty());
  const auto lost = events(run_dir, "device_lost");
  REQUIRE(!lost.empty());
  CHECK(lost[0]["rank"] == 1);
  return lost[0]["why"];
}

TEST_CASE("a chip that falls off its bus, hangs or runs out of memory in mid-run is done without") {
  struct Broken {
    const char *fault, *said;
  };
  for (const auto& [fault, said] : {Broken{"lost@op=6000", "lost"},
                                    Broken{"stuck@op=6000", "is stuck"},
                                    Broken{"oom@op=6000", "memory"}}) {
    INFO(fault);
    const Scratch scratch("broken");
    const Ended ended = run_with_fault(scratch, fault);
    const std::string why = why_lost(scratch, ended);
    INFO(why);
    CHECK(contains(why, said));
  }
}

}  // namespace
}  // namespace pelago::testing
