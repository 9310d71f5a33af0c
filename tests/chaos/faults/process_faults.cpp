// Faults that a signal makes: workers, agents and the coordinator, killed or stopped at a moment
// that is waited for.
#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <filesystem>

#include "chaos/injections.h"

namespace pelago::chaos {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr double kGoOnS = 120;
constexpr double kLookS = 0.002;

/// Its last worker dies of this signal; the site goes on by itself.
void kill_worker(LiveRun& run, const std::string& site, int number, Outcome& outcome) {
  const Mark before = mark(run);
  const std::vector<pid_t> workers = run.workers(site);
  outcome.done += fmt::format("signal {} to a worker of {}", number, site);
  if (workers.empty() || !signal_and_prove({workers.front()}, number, outcome)) return;
  expect_going_on(run, before, outcome, kGoOnS);
  const auto lost = run.records().events("device_lost", before.num_events, site);
  const auto recovered = run.records().events("recovered", before.num_events, site);
  const std::string why = lost.empty() ? "" : lost.front().value("why", "");
  expect(outcome,
         why.find(fmt::format("signal {}", number)) != std::string::npos,
         fmt::format("the loss is told with its signal ({})", why.substr(0, 60)));
  if (!recovered.empty()) {
    see(outcome,
        fmt::format("{} steps repeated", recovered.front().value("steps_repeated", int64_t{-1})));
  }
  expect_no_restart(run, before, outcome);
}

/// Just after a site has told of a step: the next one is in its first half.
bool await_step(LiveRun& run, const std::string& site) {
  const int64_t last = run.records().last_step(site);
  return run.wait_until([&] { return run.records().last_step(site) > last; }, 60, kLookS);
}

bool await_exchange(LiveRun& run, const std::string& site, int64_t& exchange) {
  return run.wait_until(
      [&] {
        exchange = exchange_under_way(run, site);
        return exchange >= 0;
      },
      60,
      kLookS);
}

bool await_quiet(LiveRun& run) {
  return run.wait_until(
      [&] {
        return std::all_of(run.sites().begin(), run.sites().end(), [&](const std::string& site) {
          const int64_t step = run.records().last_step(site);
          const int64_t interval = run.options().inner_steps / run.options().fragments;
          return exchange_under_way(run, site) < 0 && step % interval < interval / 2 + 1;
        });
      },
      60,
      kLookS);
}

void see_commit(LiveRun& run, const Mark& before, int64_t exchange, Outcome& outcome) {
  const auto commits = run.records().events("commit", before.num_events);
  const auto num = std::count_if(commits.begin(), commits.end(), [&](const json& commit) {
    return commit.value("exchange", int64_t{-1}) == exchange;
  });
  expect(outcome, num == 1, fmt::format("exchange {} committed {} time", exchange, num));
}

/// The coordinator dies; whoever looks after it starts it again.
bool kill_coordinator(LiveRun& run, Outcome& outcome) {
  outcome.done += outcome.done.empty() ? "SIGKILL to the coordinator" : ", and to the next";
  return signal_and_prove({run.coordinator()}, SIGKILL, outcome);
}

void expect_coordinator_back(LiveRun& run, const Mark& before, size_t times, Outcome& outcome) {
  const auto is_back = [&] {
    return run.records().events("coordinator_restarted", before.num_events).size() >= times;
  };
  const bool came = run.wait_until(is_back, 15);
  const double took_s = steady_s() - before.at_s;
  expect(outcome,
         came && took_s <= 5.0 * static_cast<double>(times),
         fmt::format("the next coordinator was at work {:.1f} s later", took_s));
  // Reports of the time in between come as soon as there is somebody to hear them.
  run.wait_until([] { return false; }, 1);
  int64_t fewest = 1'000'000;
  double usual = 0;
  for (const std::string& site : run.sites()) {
    fewest = std::min(fewest, run.records().last_step(site) - before.steps.at(site));
    usual = std::max(usual, (took_s + 1) / std::max(run.records().usual_step_s(site), 1e-3));
  }
  see(outcome,
      fmt::format("sites did at least {} steps meanwhile, {:.0f} would be usual", fewest, usual));
  expect_going_on(run, before, outcome, kGoOnS);
  expect_no_restart(run, before, outcome);
}

}  // namespace

Outcome worker_in_forward(LiveRun& run) {
  Outcome outcome;
  const std::string& site = run.sites()[1];
  if (!await_step(run, site)) return outcome;
  run.wait_until([] { return false; }, 0.1 * run.records().usual_step_s(site), kLookS);
  outcome.done = "in the first half of a step: ";
  kill_worker(run, site, SIGKILL, outcome);
  return outcome;
}

Outcome worker_in_reduction(LiveRun& run) {
  Outcome outcome;
  const std::string& site = run.sites()[0];
  const std::vector<pid_t> workers = run.workers(site);
  if (workers.size() < 2) return outcome;
  const Mark before = mark(run);
  outcome.done =
      fmt::format("{}: rank 1 stopped for 1.5 steps, rank 0 killed as it waits for it", site);
  if (!signal_and_prove({workers[1]}, SIGSTOP, outcome)) return outcome;
  run.wait_until([] { return false; }, 1.5 * run.records().usual_step_s(site) + 0.2);
  const bool fired = signal_and_prove({workers[0]}, SIGKILL, outcome);
  wake({workers[1]});
  if (!fired) outcome.proof.clear();
  expect_going_on(run, before, outcome, kGoOnS);
  expect_no_restart(run, before, outcome);
  return outcome;
}

Outcome worker_in_exchange(LiveRun& run) {
  Outcome outcome;
  int64_t exchange = -1;
  if (!await_exchange(run, run.sites()[1], exchange)) return outcome;
  const Mark before = mark(run);
  outcome.done = fmt::format("while exchange {} is under way: ", exchange);
  kill_worker(run, run.sites()[1], SIGKILL, outcome);
  see_commit(run, before, exchange, outcome);
  return outcome;
}

Outcome worker_while_saving(LiveRun& run) {
  Outcome outcome;
  const std::string& site = run.sites()[1];
  const fs::path folder = run.site_run_dir(site) / "sites" / site / "checkpoints";
  std::string half_made;
  const auto is_saving = [&] {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(folder, ignored)) {
      if (entry.path().extension() == ".tmp") half_made = entry.path().filename();
    }
    return !half_made.empty();
  };
  if (!run.wait_until(is_saving, 90, kLookS)) return outcome;
  outcome.done = fmt::format("while {} is written: ", half_made);
  kill_worker(run, site, SIGKILL, outcome);
  return outcome;
}

Outcome worker_segfault(LiveRun& run) {
  Outcome outcome;
  kill_worker(run, run.sites()[2], SIGSEGV, outcome);
  return outcome;
}

Outcome worker_abort(LiveRun& run) {
  Outcome outcome;
  kill_worker(run, run.sites()[2], SIGABRT, outcome);
  return outcome;
}

Outcome site_stopped_shortly(LiveRun& run) {
  Outcome outcome;
  const std::string& site = run.sites()[2];
  const Mark before = mark(run);
  const std::vector<pid_t> pids = run.site_pids(site);
  outcome.done = fmt::format("{} stopped for 2 s", site);
  if (!signal_and_prove(pids, SIGSTOP, outcome)) return outcome;
  run.wait_until([] { return false; }, 2);
  wake(pids);
  expect_going_on(run, before, outcome, kGoOnS);
  expect(
      outcome, run.records().events("site_lost", before.num_events).empty(), "nobody was given up");
  expect_no_restart(run, before, outcome);
  return outcome;
}

Outcome coordinator_idle(LiveRun& run) {
  Outcome outcome;
  if (!await_quiet(run)) return outcome;
  const Mark before = mark(run);
  if (!kill_coordinator(run, outcome)) return outcome;
  expect_coordinator_back(run, before, 1, outcome);
  return outcome;
}

Outcome coordinator_in_commit(LiveRun& run) {
  Outcome outcome;
  int64_t exchange = -1;
  if (!await_exchange(run, run.sites()[0], exchange)) return outcome;
  const Mark before = mark(run);
  if (!kill_coordinator(run, outcome)) return outcome;
  outcome.done += fmt::format(" while exchange {} is under way", exchange);
  expect_coordinator_back(run, before, 1, outcome);
  see_commit(run, before, exchange, outcome);
  return outcome;
}

Outcome coordinator_twice(LiveRun& run) {
  Outcome outcome;
  const Mark before = mark(run);
  const pid_t first = run.coordinator();
  if (!kill_coordinator(run, outcome)) return outcome;
  const auto next_is_there = [&] {
    return run.coordinator() != first && !is_gone(run.coordinator()) &&
           run.records().events("coordinator_restarted", before.num_events).size() == 1;
  };
  run.wait_until(next_is_there, 10, kLookS);
  if (!kill_coordinator(run, outcome)) outcome.proof.clear();
  expect_coordinator_back(run, before, 2, outcome);
  return outcome;
}

}  // namespace pelago::chaos
