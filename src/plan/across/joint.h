// Pipelines whose stages lie in several sites. The sites then train in step, as one: their ranks
// count through all of them in site order, and gradients, norms and losses are sums over all.
// `Plan::pipelines` has the stages; a site's own part of the plan has its devices only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "plan/plan.h"

namespace pelago::plan {

/// The sites of the plan train in step, as stages of common pipelines.
inline bool is_joint(const Plan& plan) { return !plan.pipelines.empty(); }

/// The rank of the site's first device among those of all sites.
int first_joint_rank(const Plan& plan, size_t site_idx);
/// The site of a rank that counts through all sites.
size_t site_of_joint_rank(const Plan& plan, int rank);

/// What the plan knows of the device of such a rank; null: nothing.
const DeviceProfile* profile_of_joint_rank(const Plan& plan, int rank);

/// Of a joint plan all sites as one, under the name of this site; else the site itself. Nodes are
/// called SITE/NODE, so that no node is in two sites.
SitePlan joint_site(const Plan& plan, size_t site_idx);

/// Microbatches that stage stage_idx keeps at most.
int64_t in_flight(const PipelinePlan& pipeline, size_t stage_idx);

/// Throws Failure (exit 2) saying what of a joint plan cannot be carried out. name: of its file.
void check_joint(const Plan& plan, const std::string& name);

}  // namespace pelago::plan
