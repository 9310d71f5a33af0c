#pragma once

#include <string>

#include "plan/plan.h"

namespace pelago::plan {

/// Throws Failure (exit 2) saying what cannot be carried out: shares that do not add up, blocks
/// that a pipeline lacks or holds twice, a rank in no stage or in two, unlike chips or several
/// nodes in one stage. where: "plan.json: sites[0]".
void check_site(const Plan& plan, const SitePlan& site, const std::string& where);

/// Throws Failure (exit 2) if the site's plan cuts matrices that this optimizer steps as wholes.
void check_whole_matrices(const std::string& optimizer,
                          const SitePlan& site,
                          const std::string& where);

}  // namespace pelago::plan
