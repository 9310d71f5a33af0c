// Faults of a whole site: it is stopped, goes, comes back, comes back twice, is slow.
#include <fmt/format.h>
#include <signal.h>

#include <algorithm>

#include "chaos/injections.h"

namespace pelago::chaos {

using nlohmann::json;

namespace {

constexpr double kGoOnS = 120;

void let_pass(LiveRun& run, double seconds) {
  run.wait_until([] { return false; }, seconds);
}

/// The last site, which no other fault of this file leaves in a special state.
const std::string& victim_of(const LiveRun& run) { return run.sites().back(); }

int64_t num_refused(LiveRun& run, size_t first) {
  int64_t num = 0;
  for (const json& told : run.records().events("messages_refused", first)) {
    num += told.value("count", int64_t{0});
  }
  return num;
}

int64_t steps_of_others(LiveRun& run, const Mark& from, const std::string& away) {
  int64_t fewest = 1'000'000;
  for (const std::string& site : run.sites()) {
    if (site == away) continue;
    fewest = std::min(fewest, run.records().last_step(site) - from.steps.at(site));
  }
  return fewest;
}

void expect_others_go_on(LiveRun& run,
                         const Mark& from,
                         const std::string& away,
                         Outcome& outcome) {
  const int64_t steps = steps_of_others(run, from, away);
  expect(outcome, steps >= 3, fmt::format("the others did {} steps or more meanwhile", steps));
}

/// Stopped, whatever that is to the others, and woken again.
bool freeze(LiveRun& run, double seconds, Outcome& outcome) {
  const std::string& site = victim_of(run);
  const Mark before = mark(run);
  const std::vector<pid_t> pids = run.site_pids(site);
  outcome.done = fmt::format("{} stopped for {:.0f} s", site, seconds);
  if (!signal_and_prove(pids, SIGSTOP, outcome)) return false;
  let_pass(run, seconds);
  expect_others_go_on(run, before, site, outcome);
  wake(pids);
  return true;
}

bool kill_site(LiveRun& run, const std::string& site, Outcome& outcome) {
  outcome.done += fmt::format("{}SIGKILL to {}'s agent", outcome.done.empty() ? "" : ", ", site);
  const std::vector<pid_t> workers = run.workers(site);
  if (!signal_and_prove({run.agent(site)}, SIGKILL, outcome)) return false;
  expect(outcome, reach_state(workers, '-', 2), "its workers went with it");
  return true;
}

bool await_join(LiveRun& run, const std::string& site, size_t first, double timeout_s) {
  return run.wait_until(
      [&] { return !run.records().events("site_joined", first, site).empty(); }, timeout_s, 0.002);
}

}  // namespace

Outcome site_stopped_long(LiveRun& run) {
  Outcome outcome;
  const Mark before = mark(run);
  if (!freeze(run, 10 * run.options().heartbeat_s, outcome)) return outcome;
  const std::string& site = victim_of(run);
  const Mark woken = mark(run);
  expect(outcome,
         !run.records().events("site_lost", before.num_events, site).empty(),
         "it was given up meanwhile");
  expect_going_on(run, woken, outcome, kGoOnS);
  expect(outcome,
         num_refused(run, woken.num_events) > 0,
         fmt::format("{} late messages refused", num_refused(run, woken.num_events)));
  return outcome;
}

Outcome site_stopped_for_ever(LiveRun& run) {
  Outcome outcome;
  if (!freeze(run, 70, outcome)) return outcome;
  expect_going_on(run, mark(run), outcome, kGoOnS);
  return outcome;
}

Outcome joiner_dies(LiveRun& run) {
  Outcome outcome;
  const std::string site = victim_of(run);
  const Mark before = mark(run);
  if (!kill_site(run, site, outcome)) return outcome;
  if (!await_join(run, site, before.num_events, 20)) outcome.wrong.push_back("it did not join");
  outcome.done += ", and again as it joins";
  if (!signal_and_prove({run.agent(site)}, SIGKILL, outcome)) outcome.proof.clear();
  expect_going_on(run, before, outcome, kGoOnS);
  expect_no_restart(run, before, outcome, {site});
  return outcome;
}

Outcome two_join_at_once(LiveRun& run) {
  Outcome outcome;
  const std::string one = run.sites()[1], other = victim_of(run);
  const Mark before = mark(run);
  if (!kill_site(run, one, outcome) || !kill_site(run, other, outcome)) return outcome;
  expect_going_on(run, before, outcome, kGoOnS);
  expect_no_restart(run, before, outcome, {one, other});
  return outcome;
}

Outcome join_during_exchange(LiveRun& run) {
  Outcome outcome;
  const std::string site = victim_of(run);
  int64_t exchange = -1;
  const auto is_under_way = [&] {
    exchange = exchange_under_way(run, run.sites()[0]);
    return exchange >= 0;
  };
  if (!run.wait_until(is_under_way, 60, 0.002)) return outcome;
  const Mark before = mark(run);
  outcome.done = fmt::format("while exchange {} is under way", exchange);
  if (!kill_site(run, site, outcome)) return outcome;
  expect_going_on(run, before, outcome, kGoOnS);
  expect_no_restart(run, before, outcome, {site});
  return outcome;
}

Outcome straggler(LiveRun& run) {
  Outcome outcome;
  const std::string& site = victim_of(run);
  const Mark before = mark(run);
  const std::vector<pid_t> workers = run.workers(site);
  const double half_s = 2 * run.records().usual_step_s(site);
  outcome.done = fmt::format("{}'s worker stopped half of the time for 8 s", site);
  int num_stops = 0;
  for (const double end_s = steady_s() + 8; steady_s() < end_s; ++num_stops) {
    Outcome stopped;
    if (!signal_and_prove(workers, SIGSTOP, stopped)) return outcome;
    let_pass(run, half_s);
    wake(workers);
    let_pass(run, half_s);
  }
  outcome.proof = fmt::format("in state T {} times", num_stops);
  expect_others_go_on(run, before, site, outcome);
  expect_going_on(run, before, outcome, kGoOnS);
  return outcome;
}

Outcome long_pause(LiveRun& run) {
  Outcome outcome;
  const Mark before = mark(run);
  if (!freeze(run, 5, outcome)) return outcome;
  expect_going_on(run, before, outcome, kGoOnS);
  return outcome;
}

Outcome old_address(LiveRun& run) {
  Outcome outcome;
  const std::string site = victim_of(run);
  const auto all = run.records().events("site_joined", 0, site);
  const Mark before = mark(run);
  if (all.empty() || !kill_site(run, site, outcome)) return outcome;
  expect_going_on(run, before, outcome, kGoOnS);
  const auto again = run.records().events("site_joined", before.num_events, site);
  const std::string then = all.back().value("address", ""),
                    now = again.empty() ? then : again.back().value("address", "");
  if (then == now) outcome.proof.clear();
  outcome.proof += fmt::format(", its address was {} and is {}", then, now);
  return outcome;
}

Outcome site_away_and_back(LiveRun& run) {
  Outcome outcome;
  const std::string site = victim_of(run);
  const Mark before = mark(run);
  run.hold_down(site);
  const bool fired = kill_site(run, site, outcome);
  outcome.done += ", started again 20 s later";
  if (fired) let_pass(run, 20);
  expect_others_go_on(run, before, site, outcome);
  run.let_up(site);
  expect_going_on(run, mark(run), outcome, kGoOnS);
  expect_no_restart(run, before, outcome, {site});
  return outcome;
}

Outcome site_gone_for_good(LiveRun& run) {
  Outcome outcome;
  const std::string site = victim_of(run);
  const Mark before = mark(run);
  run.hold_down(site);
  if (!kill_site(run, site, outcome)) return outcome;
  outcome.done += " for good";
  expect_going_on(run, before, outcome, kGoOnS, {site});
  expect_no_restart(run, before, outcome, {site});
  return outcome;
}

Outcome one_site_left(LiveRun& run) {
  Outcome outcome;
  const std::vector<std::string> others(run.sites().begin() + 1, run.sites().end());
  const Mark before = mark(run);
  for (const std::string& site : others) run.hold_down(site);
  bool fired = true;
  for (const std::string& site : others) fired = kill_site(run, site, outcome) && fired;
  if (!fired) outcome.proof.clear();
  expect_going_on(run, before, outcome, kGoOnS, others);
  for (const std::string& site : others) run.let_up(site);
  outcome.done += ", and all of them back";
  expect_going_on(run, mark(run), outcome, kGoOnS);
  expect_no_restart(run, before, outcome, others);
  return outcome;
}

Outcome power_cut(LiveRun& run) {
  Outcome outcome;
  const Mark before = mark(run);
  std::vector<pid_t> pids{run.coordinator()};
  for (const std::string& site : run.sites()) {
    for (const pid_t pid : run.site_pids(site)) pids.push_back(pid);
  }
  outcome.done = "SIGKILL to every process at once, all started again";
  if (!signal_and_prove(pids, SIGKILL, outcome)) return outcome;
  const auto begins_again = [&] {
    return !run.records().events("run_started", before.num_events).empty() ||
           !run.problem().empty();
  };
  if (!run.wait_until(begins_again, kGoOnS) || !run.problem().empty()) {
    outcome.wrong.push_back("the run did not begin again " + run.problem());
    return outcome;
  }
  const auto started = run.records().events("run_started", before.num_events);
  const int64_t step = started.front().value("step", int64_t{-1});
  int64_t furthest = 0;
  for (const auto& [site, done] : before.steps) furthest = std::max(furthest, done);
  const int64_t bound = run.options().checkpoint_every_steps + 2 * run.options().inner_steps;
  expect(outcome,
         step >= 0 && furthest - step <= bound,
         fmt::format("went on from step {} of {}, checkpoints every {}",
                     step,
                     furthest,
                     run.options().checkpoint_every_steps));
  const auto passes = [&] {
    return std::all_of(run.sites().begin(), run.sites().end(), [&](const std::string& site) {
      return run.records().last_step_time_s(site) > started.front().value("time", 0.0) &&
             run.records().last_step(site) >= step + 3;
    });
  };
  expect(outcome, run.wait_until(passes, kGoOnS), "all sites train again");
  return outcome;
}

}  // namespace pelago::chaos
