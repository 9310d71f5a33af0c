// Kills a worker in the middle of a run and sees how long the site needs to get over it.
#pragma once

#include <signal.h>

#include <chrono>
#include <fstream>
#include <future>
#include <iterator>

#include "base/clock.h"
#include "bench/fleet_run.h"

namespace pelago::bench {

/// What killing a worker cost.
struct KilledRun {
  double next_new_step_s = 0;  // from the kill to a step that was never done before
  double step_s = 0;           // of the steps before
};

/// The newest worker process of the run.
inline pid_t last_worker_of(const fs::path& folder, const fs::path& run) {
  pid_t newest = 0;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream file(entry.path() / "cmdline", std::ios::binary);
    const std::string words((std::istreambuf_iterator<char>(file)), {});
    const bool is_worker = words.find(std::string("\0worker\0", 8)) != std::string::npos;
    std::error_code gone;
    const bool is_here = fs::read_symlink(entry.path() / "cwd", gone) == folder;
    if (is_worker && is_here && words.find(run.string()) != std::string::npos) {
      newest = std::max(newest, static_cast<pid_t>(std::stol(name)));
    }
  }
  if (newest == 0) fail("no worker of {} to kill", run.string());
  return newest;
}

/// Starts a run, kills its last worker after step at_step, and waits for its end.
inline KilledRun kill_a_worker(const FleetBench& bench,
                               const std::string& fleet,
                               double slowdown,
                               int64_t at_step,
                               const std::string& more) {
  const fs::path run = fs::path("runs") / "mixed";
  std::error_code ignored;
  fs::remove_all(bench.folder() / run, ignored);
  std::future<nlohmann::json> training = std::async(
      std::launch::async, [&] { return bench.train(fleet, slowdown, at_step + 20, more); });
  const auto last_step = [&] {
    const auto steps = bench.steps_of(run);
    return steps.empty() ? int64_t{0} : steps.back()["step"].get<int64_t>();
  };
  const auto wait_for = [&](int64_t step) {
    while (last_step() < step) {
      const auto status = training.wait_for(std::chrono::milliseconds(5));
      if (status == std::future_status::ready) training.get();
    }
    return steady_now_s();
  };
  KilledRun result;
  const double before_s = wait_for(at_step - 6);
  const double begin_s = wait_for(at_step);
  result.step_s = (begin_s - before_s) / 6;
  const int64_t reached = last_step();
  const pid_t victim = last_worker_of(bench.folder(), run);
  const double killed_s = steady_now_s();
  ::kill(victim, SIGKILL);
  result.next_new_step_s = wait_for(reached + 1) - killed_s;
  training.get();
  return result;
}

}  // namespace pelago::bench
