// One site's way through its steps, as far as nobody else is needed: where it stands, what it has
// still to pass in this step, and what its time went to.
#pragma once

#include <cstdint>
#include <vector>

#include "base/rng.h"
#include "plan/simulation/run/run_model.h"
#include "plan/simulation/run/run_play.h"

namespace pelago::plan {

/// A point within a step where a site gives or needs a part of an exchange, or the step's end.
struct Mark {
  enum class Kind : uint8_t { kNeed, kGive, kEnd };
  double at_ratio = 0;  // of the step
  Kind kind = Kind::kEnd;
  uint32_t exchange_idx = 0;
  uint32_t part_idx = 0;
  int64_t number = 0;
};

/// The marks of a step, in order. Parts of one exchange are given in the schedule's order.
std::vector<Mark> marks_of_step(const SimulatedSite& site,
                                const std::vector<ScheduledExchange>& schedule,
                                int64_t step);

enum class Activity : uint8_t { kAway, kComputing, kWaiting, kDown };

struct SiteClock {
  Activity activity = Activity::kAway;
  double since_s = 0;    // of this activity
  uint32_t version = 0;  // of what is foretold of it: rises with every interruption
  int64_t step = 0;      // that it is in
  double step_begin_s = 0, step_length_s = 0;
  std::vector<Mark> marks;
  size_t next_mark = 0;
  double counted_ratio = 0;  // of this step's computing, how much is in the outcome
  // Since the last snapshot, which a fault takes away.
  int64_t snapshot_step = 0;
  double fresh_s = 0, fresh_tokens = 0, fresh_steps = 0;
  double chips_lost = 0;
  double slow_until_s = -1;
  bool is_over = false;           // it left, or its last step is done
  bool missed_exchange = false;   // while it was away
  int64_t first_traced_step = 0;  // of the run of steps that has no span yet
  SiteOutcome outcome;

  /// Of its chips, the share that works; spares count first.
  double pace(const SimulatedSite& site, double spares) const;
  /// Puts the time since since_s where it belongs and begins another activity.
  void change(Activity next, double now_s);
  /// What was computed since the last snapshot is lost.
  void lose_fresh_work();
  void take_snapshot(int64_t next_step);
};

/// The largest of `count` independent standard normal values: what a step waits for whose chips
/// take turns at being late.
double largest_normal(double count, Rng& rng);
/// Exponential with this mean.
double next_exponential(double mean, Rng& rng);

}  // namespace pelago::plan
