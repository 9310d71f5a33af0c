#include "plan/across/joint.h"

#include "base/error.h"
#include "plan/cost/device/profile_key.h"
#include "plan/site_check.h"

namespace pelago::plan {

int first_joint_rank(const Plan& plan, size_t site_idx) {
  size_t rank = 0;
  for (size_t i = 0; i < site_idx; ++i) rank += plan.sites[i].devices.size();
  return static_cast<int>(rank);
}

size_t site_of_joint_rank(const Plan& plan, int rank) {
  auto left = static_cast<size_t>(rank);
  for (size_t i = 0; i < plan.sites.size(); ++i) {
    if (left < plan.sites[i].devices.size()) return i;
    left -= plan.sites[i].devices.size();
  }
  fail("rank {} is in no site of the plan", rank);
}

const DeviceProfile* profile_of_joint_rank(const Plan& plan, int rank) {
  const size_t site_idx = site_of_joint_rank(plan, rank);
  const SitePlan& site = plan.sites[site_idx];
  const auto own = static_cast<size_t>(rank - first_joint_rank(plan, site_idx));
  return find_profile(plan, site.name, site.devices[own]);
}

SitePlan joint_site(const Plan& plan, size_t site_idx) {
  SitePlan joint = plan.sites.at(site_idx);
  if (!is_joint(plan)) return joint;
  joint.devices.clear();
  for (const SitePlan& site : plan.sites) {
    for (DevicePlan device : site.devices) {
      device.node = site.name + "/" + device.node;
      joint.devices.push_back(std::move(device));
    }
  }
  joint.pipelines = plan.pipelines;
  joint.batch_sequences = plan.batch_sequences;
  joint.first_sequence = 0;
  joint.slice_optimizer = false;
  return joint;
}

int64_t in_flight(const PipelinePlan& pipeline, size_t stage_idx) {
  const int64_t given = pipeline.stages[stage_idx].in_flight;
  return given > 0 ? given : static_cast<int64_t>(pipeline.stages.size() - stage_idx);
}

void check_joint(const Plan& plan, const std::string& name) {
  if (plan.sites.size() < 2) {
    fail_usage("{}: pipelines of the whole plan need several sites: move them into the site", name);
  }
  for (size_t i = 0; i < plan.sites.size(); ++i) {
    const SitePlan& site = plan.sites[i];
    const bool is_bare = site.pipelines.empty() && site.batch_sequences == 0 &&
                         !site.slice_optimizer && !site.name.empty() && !site.devices.empty();
    if (is_bare) continue;
    fail_usage(
        "{}: sites[{}]: beside pipelines of the whole plan a site has a name and devices, but no "
        "pipelines, batch_sequences or slice_optimizer of its own",
        name,
        i);
  }
  check_site(plan, joint_site(plan, 0), name);
}

}  // namespace pelago::plan
