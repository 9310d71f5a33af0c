// A plan that was edited, or made for another job or fleet, is refused before anything starts.
#include <algorithm>
#include <iterator>

#include "base/error.h"
#include "plan/across/joint.h"
#include "plan/cost/device/profile.h"
#include "plan/cost/device/profile_key.h"
#include "plan/planner/aim/part_of_fleet.h"
#include "plan/planner/planner.h"

namespace pelago::plan {

namespace {

constexpr double kGib = 1024.0 * 1024.0 * 1024.0;

template <typename T>
void must_equal(const std::string& name,
                const char* field,
                const T& in_plan,
                const char* other_field,
                const T& in_other) {
  if (in_plan == in_other) return;
  fail_usage("{}: {} = {}, but {} = {}: make the plan again, or give the job it was made for",
             name,
             field,
             in_plan,
             other_field,
             in_other);
}

void check_stages(const SitePlan& site, const ModelSizes& sizes, const std::string& where) {
  for (size_t i = 0; i < site.pipelines.size(); ++i) {
    for (size_t s = 0; s < site.pipelines[i].stages.size(); ++s) {
      const auto width = static_cast<int64_t>(site.pipelines[i].stages[s].ranks.size());
      if (can_be_cut(sizes, width)) continue;
      fail_usage(
          "{}.pipelines[{}].stages[{}]: {} ranks do not divide the model's heads, feed-forward "
          "width and sequence length",
          where,
          i,
          s,
          width);
    }
  }
}

void check_memory(const PlannedSite& planned, const SitePlan& site, const std::string& where) {
  for (size_t i = 0; i < planned.layout.pipelines.size(); ++i) {
    const std::vector<StageChoice>& stages = planned.layout.pipelines[i].shape.stages;
    for (size_t s = 0; s < stages.size(); ++s) {
      const Kind& kind = planned.problem.kinds[stages[s].kind_idx];
      const double needed = memory_of_stage(planned.problem,
                                            stages,
                                            s,
                                            site.pipelines[i].microbatch,
                                            site.pipelines[i].num_microbatches(),
                                            shared_traits(planned.layout))
                                .total();
      if (kind.memory_bytes <= 0 || needed <= kind.memory_bytes) continue;
      fail_usage(
          "{}.pipelines[{}].stages[{}]: needs {:.2f} GiB on each rank, {} has {:.2f}: give it "
          "fewer blocks, a smaller microbatch, or recompute = true",
          where,
          i,
          s,
          needed / kGib,
          kind.device,
          kind.memory_bytes / kGib);
    }
  }
}

void check_layout(const std::vector<SiteDevice>& devices,
                  const JobConfig& job,
                  const ModelSizes& sizes,
                  const SitePlan& site,
                  const std::string& where) {
  PlannedSite planned;
  planned.problem = make_problem(devices, sizes, job.train, site.batch_sequences);
  planned.layout = *keep_layout(planned.problem, site);
  check_memory(planned, site, where);
}

}  // namespace

void check_plan_fits(const Plan& plan,
                     const JobConfig& job,
                     const FleetConfig& fleet,
                     const chips::Catalogue& catalogue,
                     const std::string& name) {
  must_equal(name, "num_blocks", plan.num_blocks, "num_hidden_layers", job.model.num_hidden_layers);
  must_equal(name, "num_parameters", plan.num_parameters, "the model's", num_parameters(job));
  must_equal(name, "optimizer", plan.optimizer, "train.optimizer", job.train.optimizer);
  must_equal(name,
             "sequence_length",
             plan.sequence_length,
             "data.sequence_length",
             job.data.sequence_length);
  must_equal(name,
             "emulation_slowdown",
             plan.emulation_slowdown,
             "emulation.slowdown",
             fleet.emulation_slowdown);
  const ModelSizes sizes = sizes_of(job, plan.sequence_length);
  const FleetConfig part = part_of_fleet(plan, fleet, catalogue, name);
  std::vector<SiteDevice> all_devices;
  for (size_t i = 0; i < plan.sites.size(); ++i) {
    const SitePlan& site = plan.sites[i];
    const std::string where = fmt::format("{}: sites[{}]", name, i);
    check_stages(site, sizes, where);
    std::vector<SiteDevice> devices;
    for (const FleetDevice& device : part.sites[i].devices) {
      refuse_wrong_dtype(job, device, catalogue);
      const DeviceProfile* profile = find_profile(
          plan.profiles, site.name, device.node, profile_name(device.device, device.cores.size()));
      if (profile == nullptr) {
        fail_usage("{}: profiles has none of {}", name, device.device);
      }
      devices.push_back(
          {device.device, device.node, *profile, device_memory_bytes(device, fleet, catalogue)});
    }
    if (is_joint(plan)) {
      std::ranges::move(devices, std::back_inserter(all_devices));
      continue;
    }
    check_layout(devices, job, sizes, site, where);
  }
  if (!is_joint(plan)) return;
  const SitePlan joint = joint_site(plan, 0);
  for (size_t rank = 0; rank < all_devices.size(); ++rank) {
    all_devices[rank].node = joint.devices[rank].node;
  }
  check_stages(joint, sizes, name);
  check_layout(all_devices, job, sizes, joint, name);
}

}  // namespace pelago::plan
