// Which part of a large fleet serves an objective best, where a plan of each part would take hours:
// from the whole fleet, each kind alone and the kinds in the order of what they give for what they
// take, one number is changed at a time, the others staying or taking what that leaves of the
// limits. Most parts are never planned, since what their devices could do at best is not enough; of
// the others the most promising come first, by how much of its best each kind reached alone.
#pragma once

#include <functional>

#include "plan/planner/aim/groups.h"

namespace pelago::plan {

/// What the search may ask. All outlive it; worth() alone makes a plan.
struct ClimbTerms {
  Counts whole;
  std::vector<Counts> starts;  // more to begin with, any number of times
  std::function<std::vector<int64_t>(size_t, int64_t)>
      numbers;                                        // of a group, worth a plan, and what it has
  std::function<Counts(const Counts&, size_t)> fill;  // all groups but this one, to the limits
  std::function<double(const Counts&)> least_excess;  // of limits, as far as no plan is needed
  std::function<double(const Counts&)> bound;         // no plan's objective is above it
  std::function<const Worth&(const Counts&)> worth;
  std::vector<double> device_tokens_s;  // of one device at best, by group
  int64_t plans_max = 0;
};

/// The best part found; the same for the same terms.
Counts climb(const ClimbTerms& terms);

}  // namespace pelago::plan
