// Whether sites are to train in step, and the plan if they are.
#pragma once

#include <optional>
#include <vector>

#include "plan/planner/across/joint_search.h"

namespace pelago::plan {

/// Pipelines over the sites, if the job asks for them, or if that is how the model fits, or clearly
/// faster than each site for itself. Throws Failure (exit 2) if the job asks for what cannot be.
std::optional<JointLayout> choose_joint(const std::vector<std::vector<SiteDevice>>& devices,
                                        const FleetConfig& fleet,
                                        const JobConfig& job);

/// Whoever sets how deltas are exchanged may not expect that none are.
void warn_of_rounds_settings(const JobConfig& job, Plan& plan);

/// Fills sites, pipelines, batch and predictions.
void fill_joint(const JointLayout& joint,
                const JobConfig& job,
                const FleetConfig& fleet,
                const chips::Catalogue& catalogue,
                Plan& plan);

}  // namespace pelago::plan
