#include "plan/cost/plan_costs.h"

#include "base/error.h"
#include "plan/across/joint.h"
#include "plan/planner/across/joint_search.h"
#include "plan/planner/planner.h"

namespace pelago::plan {

namespace {

PlannedSite planned_site(const Plan& plan, const JobConfig& job, const SitePlan& site) {
  PlannedSite planned;
  planned.problem = make_problem(devices_of(plan, site, {}),
                                 sizes_of(job, plan.sequence_length),
                                 job.train,
                                 site.batch_sequences);
  planned.layout = *keep_layout(planned.problem, site);
  return planned;
}

/// Messages of a pipeline that leave their site take its line instead.
void add_lines(const Plan& plan,
               const JobConfig& job,
               const PipelinePlan& pipeline,
               std::vector<StageCosts>& stages) {
  const ModelSizes sizes = sizes_of(job, plan.sequence_length);
  for (size_t stage = 0; stage + 1 < stages.size(); ++stage) {
    const size_t here = site_of_joint_rank(plan, pipeline.stages[stage].ranks.front());
    const size_t there = site_of_joint_rank(plan, pipeline.stages[stage + 1].ranks.front());
    if (here == there) continue;
    const FleetLink* link = nullptr;
    for (const FleetLink& one : plan.links) {
      const std::string& a = plan.sites[here].name;
      const std::string& b = plan.sites[there].name;
      if ((one.from == a && one.to == b) || (one.from == b && one.to == a)) link = &one;
    }
    if (link == nullptr) {
      fail("the plan has no link between the sites \"{}\" and \"{}\": make the plan again",
           plan.sites[here].name,
           plan.sites[there].name);
    }
    const DevicePlan device =
        joint_site(plan, 0).devices[static_cast<size_t>(pipeline.stages[stage].ranks.front())];
    const DeviceProfile& profile =
        plan.profiles.at(profile_name(device.device, device.cores.size()));
    const LineCosts line = line_costs(*link);
    const double bytes = sizes.tokens * sizes.hidden *
                         activation_bytes(plan.exchange.activation_bits, profile.dtype);
    stages[stage].message = {line.way_s, 0};
    stages[stage].line = {0, bytes * line.slower_byte_s()};
  }
}

}  // namespace

SiteRun run_of_plan(const Plan& plan, const JobConfig& job, size_t site_idx) {
  const SitePlan site = joint_site(plan, site_idx);
  const PlannedSite planned = planned_site(plan, job, site);
  std::vector<int64_t> shares;
  for (const PipelinePlan& pipeline : site.pipelines) shares.push_back(pipeline.sequences);
  SiteRun run = site_run(planned.problem, planned.layout, shares);
  for (size_t i = 0; i < site.pipelines.size(); ++i) {
    const PipelinePlan& pipeline = site.pipelines[i];
    // The plan's microbatch counts, whatever the planner would choose for these shares.
    run.pipelines[i].sequences = cut_microbatches(pipeline.sequences, pipeline.microbatch);
    for (size_t stage = 0; stage < pipeline.stages.size(); ++stage) {
      run.pipelines[i].stages[stage].in_flight = pipeline.stages[stage].in_flight;
    }
    if (is_joint(plan)) add_lines(plan, job, pipeline, run.pipelines[i].stages);
  }
  return run;
}

std::vector<std::vector<MemoryPlan>> memory_of_plan(const Plan& plan,
                                                    const JobConfig& job,
                                                    size_t site_idx) {
  const SitePlan site = joint_site(plan, site_idx);
  const PlannedSite planned = planned_site(plan, job, site);
  std::vector<std::vector<MemoryPlan>> memory(site.pipelines.size());
  for (size_t i = 0; i < site.pipelines.size(); ++i) {
    const PipelinePlan& pipeline = site.pipelines[i];
    for (size_t stage = 0; stage < pipeline.stages.size(); ++stage) {
      memory[i].push_back(memory_of_stage(planned.problem,
                                          planned.layout.pipelines[i].shape.stages,
                                          stage,
                                          pipeline.microbatch,
                                          pipeline.num_microbatches(),
                                          shared_traits(planned.layout)));
    }
  }
  return memory;
}

}  // namespace pelago::plan
