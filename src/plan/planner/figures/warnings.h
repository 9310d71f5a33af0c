// What is odd about a plan, but no reason to refuse it: sentences for Plan::warnings.
#pragma once

#include <vector>

#include "plan/planner/planner.h"

namespace pelago::plan {

/// A pipeline that slows all others with a single sequence is kept, but named: with whole sequences
/// there is no smaller share to give it.
/// paces: of all pipelines of all sites.
void warn_of_brakes(const std::vector<Pace>& paces,
                    const BatchRange& range,
                    const Balance& balance,
                    Plan& plan);
/// Microbatches smaller than the job allows; devices of this machine that need more than it has.
void warn_of_memory(const std::vector<PlannedSite>& planned, const JobConfig& job, Plan& plan);
/// Fewer steps than a round or the warm-up has.
void warn_of_short_run(const JobConfig& job, Plan& plan);

}  // namespace pelago::plan
