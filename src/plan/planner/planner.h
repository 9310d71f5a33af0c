// What making a plan and making it anew have in common.
#pragma once

#include <span>
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

/// What a site's step waits for: "A100 80GB SXM compute", "cpu compute", ...
std::string name_bound_of(const SlowestStage& slowest,
                          const FleetSite& site,
                          const JobConfig& job,
                          const chips::Catalogue& catalogue);

/// The devices of a site of a plan that exists, with the plan's profiles. pace_factors: by rank,
/// how many times longer a device takes than its profile says; empty: 1 for all.
std::vector<SiteDevice> devices_of(const Plan& plan,
                                   const SitePlan& site,
                                   std::span<const double> pace_factors);

/// A device before it has work. plan: has its profile.
DevicePlan device_plan(const std::string& site,
                       const FleetDevice& from,
                       const FleetConfig& fleet,
                       const chips::Catalogue& catalogue,
                       const Plan& plan);

}  // namespace pelago::plan
