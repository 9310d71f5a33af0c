// How much of each kind a job's limits allow, and in which order kinds are worth taking.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "plan/job.h"
#include "plan/planner/aim/groups.h"

namespace pelago::plan {

class Allowance {
 public:
  /// groups and aim outlive it. keep_free: by chip. device_tokens_s: what one device could do at
  /// best, by group.
  Allowance(const std::vector<Group>& groups,
            const AimConfig& aim,
            const std::map<std::string, int64_t>& keep_free,
            std::vector<double> device_tokens_s);

  /// Each kind alone, and the kinds one after another in the order of what one of them gives for
  /// what it takes, as far as the limits go.
  std::vector<Counts> starts() const;
  /// The same number of this group, and of the others as many more as the watts allow, the best
  /// kinds first. As it was without a limit of watts.
  Counts filled(Counts counts, size_t group_idx) const;
  /// No plan of these devices is faster.
  double bound_tokens_s(const Counts& counts) const;
  double watts_of(const Counts& counts) const;

 private:
  /// Of so many devices those that the limit has watts for beside those at work, in whole nodes if
  /// it has none for all.
  int64_t within_watts(const Group& group, int64_t count, double watts) const;

  const std::vector<Group>& groups_;
  const AimConfig& aim_;
  std::vector<double> device_tokens_s_;
  std::vector<size_t> order_;  // of groups
  Counts most_;                // without what must stay free
};

}  // namespace pelago::plan
