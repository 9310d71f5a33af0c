// What every injection needs: a run, a proof that the fault fired, and what became of the run.
#pragma once

#include <string>
#include <vector>

#include "chaos/run/live_run.h"

namespace pelago::chaos {

/// Of one fault. Empty proof: it did not fire, and nothing else counts.
struct Outcome {
  std::string done;                // what was done to whom
  std::string proof;               // that it happened
  std::string seen;                // what the run did
  std::vector<std::string> wrong;  // what it should have done
};

using Injection = Outcome (*)(LiveRun&);

/// Adds words to what was seen, or to what is wrong if `holds` is false.
void expect(Outcome& outcome, bool holds, const std::string& words);
void see(Outcome& outcome, const std::string& words);

/// Sends it and looks at /proc: gone, or stopped. Fills in the proof. False: it did not work.
bool signal_and_prove(const std::vector<pid_t>& pids, int number, Outcome& outcome);
void wake(const std::vector<pid_t>& pids);

/// The exchange whose snapshot a site has taken and which has no commit yet; -1: none.
int64_t exchange_under_way(LiveRun& run, const std::string& site);

/// Where a run stands, to be compared with later.
struct Mark {
  double at_s = 0, at_unix_s = 0;
  size_t num_events = 0;
  int64_t num_commits = 0;
  std::map<std::string, int64_t> steps;   // by site
  std::map<std::string, int> num_starts;  // by site
};
Mark mark(LiveRun& run);

/// Waits until every site but those that are away has done a few more steps and been a member of
/// two more commits. Tells how long that took since `from`, or that it did not come to that.
void expect_going_on(LiveRun& run,
                     const Mark& from,
                     Outcome& outcome,
                     double timeout_s,
                     const std::vector<std::string>& away = {});
/// No site but these was started again since.
void expect_no_restart(LiveRun& run,
                       const Mark& from,
                       Outcome& outcome,
                       const std::vector<std::string>& but = {});

}  // namespace pelago::chaos
