// Plays a RunModel: sites compute, meet in exchanges, wait for lines, break and come back.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "plan/simulation/output/trace.h"
#include "plan/simulation/run/run_model.h"

namespace pelago::plan {

struct RunOptions {
  int64_t steps = 0;  // of each site; 0: until the time is over
  double hours = 0;   // of virtual time; 0: until the steps are done. One of the two is set.
  uint64_t seed = 1;
  Trace* trace = nullptr;         // may be null; outlives the call
  int64_t trace_steps_max = 400;  // so many steps of a site have spans of their own, then runs of
                                  // steps have
  /// Seconds of computing of a step of a site; null: the model's step_s.
  std::function<double(size_t site_idx, int64_t step)> step_seconds = nullptr;
};

/// How a site spent the time, in seconds that, behind_s apart, add up to the time played.
struct SiteOutcome {
  std::string name;
  double steps = 0;
  double tokens = 0;       // trained and not lost again
  double computing_s = 0;  // of what was not lost
  double waiting_s = 0;    // for an exchange
  double behind_s = 0;     // of that: for sites that had not given their part; the rest: the line
  double snapshot_s = 0;
  double lost_s = 0;  // computed, then lost with a fault
  double down_s = 0;  // from a fault until the site computes again
  double away_s = 0;  // before it joined, after it left, after its last step
  int64_t num_faults = 0;
};

struct LineOutcome {
  size_t from = 0, to = 0;
  double bytes = 0;
  double busy_s = 0;
  int64_t num_faults = 0;
};

struct FaultOutcome {
  std::string name;
  int64_t count = 0;
};

struct RunOutcome {
  double played_s = 0;
  double tokens = 0;
  double ideal_tokens = 0;  // all sites there, nothing waited for, nothing broken
  std::vector<SiteOutcome> sites;
  std::vector<LineOutcome> lines;
  std::vector<FaultOutcome> faults;  // by kind, as in the model; then "line"
  std::vector<double> exchange_s;    // from all members ready to all have it, in order
  int64_t num_left_out = 0;          // times that an exchange went on without a site
  uint64_t num_events = 0;

  double tokens_s() const { return played_s > 0 ? tokens / played_s : 0; }
  /// Tokens over those of a run in which nothing is waited for and nothing breaks.
  double goodput() const { return ideal_tokens > 0 ? tokens / ideal_tokens : 0; }
  /// Of the sites' time that passed without faults, the part in which they compute.
  double compute_utilisation() const;
};

/// The same model, options and seed give the same outcome and the same trace. Calls check_model().
RunOutcome play_run(const RunModel& model, const RunOptions& options);

}  // namespace pelago::plan
