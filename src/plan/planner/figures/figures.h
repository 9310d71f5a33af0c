// What a person asks of a plan besides its pace: how far it is from the best that these devices
// could do, between which figures the truth lies, what it draws and costs.
#pragma once

#include <vector>

#include "plan/planner/problem.h"

namespace pelago::plan {

/// What one device could do if it computed all the time, in the largest microbatches.
struct DeviceBound {
  double blocks_s = 0;  // blocks of a sequence in a second, both ways
  double ends = 0;      // what a pipeline of it does besides its blocks, in blocks
};
DeviceBound bound_of_device(const DeviceProfile& profile, const JobConfig& job);

/// Sequences a second that no plan of these devices reaches with this batch, by the same costs: all
/// of them compute all the time in the largest microbatches, nobody waits for anybody, and an
/// update takes no longer than its fixed part; nor is a step shorter than one sequence's way
/// through the model and back, which many devices for few sequences come up against.
double bound_sequences_s(const std::vector<std::vector<SiteDevice>>& sites,
                         const JobConfig& job,
                         int64_t batch);

/// Fills bound, interval, watts and price. The plan has its predictions.
void fill_figures(const std::vector<std::vector<SiteDevice>>& sites,
                  const JobConfig& job,
                  const FleetConfig& fleet,
                  const chips::Catalogue& catalogue,
                  Plan& plan);

}  // namespace pelago::plan
