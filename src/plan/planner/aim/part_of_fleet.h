// The chips of a fleet that a plan names: a plan, chosen or edited, may leave others free.
#pragma once

#include <string>

#include "plan/plan.h"

namespace pelago::plan {

/// Sites by name and, in each, devices by their string and node, in the order of the fleet; of
/// several that are alike those with the plan's processors and memory, else the first. Throws
/// Failure (exit 2) naming the site or device of the plan that the fleet lacks. name: of the plan's
/// file.
FleetConfig part_of_fleet(const Plan& plan,
                          const FleetConfig& fleet,
                          const chips::Catalogue& catalogue,
                          const std::string& name);

/// What of the fleet this part leaves out, "2 of 4 A100 80GB SXM in site a, ..."; empty: nothing.
std::string left_free(const FleetConfig& fleet,
                      const FleetConfig& part,
                      const chips::Catalogue& catalogue);

}  // namespace pelago::plan
