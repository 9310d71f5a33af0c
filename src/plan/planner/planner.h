// What making a plan and making it anew have in common.
#pragma once

#include <string>
#include <vector>

#include "plan/planner/search/balance.h"
#include "plan/planner/site_run.h"

namespace pelago::plan {

/// One site with the layout that was found for it.
struct PlannedSite {
  SiteProblem problem;
  SiteLayout layout;
  /// The paces of its pipelines, with what the whole site waits for at the end of a step.
  std::vector<Pace> paces() const;
};

/// Which device a site's step waits for.
struct SlowestStage {
  size_t rank = 0;
  int64_t microbatch = 1;
  std::string instead;  // what it waits for if not for a device: "the reduction", ...
};
SlowestStage find_slowest(const SitePlan& site, const SiteTime& time);

}  // namespace pelago::plan
