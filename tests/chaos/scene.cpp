#include "chaos/scene.h"

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>

namespace pelago::chaos {

namespace {

constexpr double kFireS = 10;  // in which a signal has done its work

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

void see(Outcome& outcome, const std::string& words) {
  outcome.seen += (outcome.seen.empty() ? "" : "; ") + words;
}

void expect(Outcome& outcome, bool holds, const std::string& words) {
  holds ? see(outcome, words) : outcome.wrong.push_back("not: " + words);
}

bool signal_and_prove(const std::vector<pid_t>& pids, int number, Outcome& outcome) {
  const bool are_there = !pids.empty() && std::none_of(pids.begin(), pids.end(), [](pid_t pid) {
    return pid <= 0 || is_gone(pid);
  });
  if (!are_there) return false;
  const double begin_s = steady_s();
  for (const pid_t pid : pids) ::kill(pid, number);
  const bool is_stop = number == SIGSTOP;
  if (!reach_state(pids, is_stop ? 'T' : '-', kFireS)) return false;
  outcome.proof += fmt::format("{}pid {}{} {} after {:.0f} ms",
                               outcome.proof.empty() ? "" : ", ",
                               pids.front(),
                               pids.size() > 1 ? fmt::format(" and {} more", pids.size() - 1) : "",
                               is_stop ? "in state T" : "gone",
                               1e3 * (steady_s() - begin_s));
  return true;
}

void wake(const std::vector<pid_t>& pids) {
  for (const pid_t pid : pids) ::kill(pid, SIGCONT);
}

int64_t exchange_under_way(LiveRun& run, const std::string& site) {
  const int64_t interval = run.options().inner_steps / run.options().fragments;
  const int64_t exchange = run.records().last_step(site) / interval - 1;
  return exchange >= 0 && !run.records().is_committed(exchange) ? exchange : -1;
}

Mark mark(LiveRun& run) {
  run.records().read_on();
  Mark now{.at_s = steady_s(),
           .at_unix_s = unix_s(),
           .num_events = run.records().events().size(),
           .num_commits = run.records().num_commits(),
           .steps = {},
           .num_starts = {}};
  for (const std::string& site : run.sites()) {
    now.steps[site] = run.records().last_step(site);
    now.num_starts[site] = run.num_restarts(site);
  }
  return now;
}

void expect_going_on(LiveRun& run,
                     const Mark& from,
                     Outcome& outcome,
                     double timeout_s,
                     const std::vector<std::string>& away) {
  constexpr int64_t kSteps = 3, kCommits = 2;
  const Mark here = mark(run);
  const auto goes_on = [&](const std::string& site) {
    return contains(away, site) ||
           (run.records().last_step_time_s(site) > here.at_unix_s &&
            run.records().last_step(site) >=
                std::min(here.steps.at(site), from.steps.at(site)) + kSteps &&
            run.records().num_commits_with(site, here.num_events) >= kCommits);
  };
  const auto all_go_on = [&] {
    return std::all_of(run.sites().begin(), run.sites().end(), goes_on) || !run.problem().empty();
  };
  const bool is_good = run.wait_until(all_go_on, timeout_s) && run.problem().empty();
  std::string waiting;
  for (const std::string& site : run.sites()) {
    if (!goes_on(site))
      waiting += fmt::format(" {} (step {})", site, run.records().last_step(site));
  }
  if (is_good) {
    see(outcome, fmt::format("all in step again after {:.1f} s", steady_s() - here.at_s));
  } else {
    outcome.wrong.push_back(fmt::format(
        "{:.0f} s later not going on:{} {}", steady_s() - here.at_s, waiting, run.problem()));
  }
}

void expect_no_restart(LiveRun& run,
                       const Mark& from,
                       Outcome& outcome,
                       const std::vector<std::string>& but) {
  for (const std::string& site : run.sites()) {
    if (contains(but, site)) continue;
    const int more = run.num_restarts(site) - from.num_starts.at(site);
    if (more != 0)
      outcome.wrong.push_back(fmt::format("{} was started again {} times", site, more));
  }
}

}  // namespace pelago::chaos
