#include "plan/cost/plan_costs.h"

#include <algorithm>

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
  std::optional<SiteLayout> layout = keep_layout(planned.problem, site);
  if (!layout) {
    fail("site \"{}\": the plan's stages do not fit its devices any more: make the plan again",
         site.name);
  }
  planned.layout = std::move(*layout);
  return planned;
}

/// Messages of a pipeline that leave their site take its line instead. Returns what crosses it once
/// a step.
double add_lines(const Plan& plan,
                 const JobConfig& job,
                 const PipelinePlan& pipeline,
                 std::vector<StageCosts>& stages) {
  const ModelSizes sizes = sizes_of(job, plan.sequence_length);
  double end_s = 0;
  for (size_t stage = 0; stage + 1 < stages.size(); ++stage) {
    const std::optional<size_t> link_idx = link_behind(plan, pipeline, stage);
    if (!link_idx) continue;
    const FleetLink& link = plan.links[*link_idx];
    const DeviceProfile* profile =
        profile_of_joint_rank(plan, pipeline.stages[stage].ranks.front());
    PELAGO_ASSERT(profile != nullptr, "the stages' costs come from their devices' profiles");
    const LineCosts line = line_costs(link);
    const double bytes = sizes.tokens * sizes.hidden *
                         activation_bytes(plan.exchange.activation_bits, profile->dtype);
    stages[stage].message = {line.way_s, 0};
    stages[stage].line = {0, bytes * line.slower_byte_s()};
    end_s = std::max(end_s, step_end_s(link, sizes));
  }
  return end_s;
}

}  // namespace

std::optional<size_t> link_behind(const Plan& plan, const PipelinePlan& pipeline, size_t stage) {
  if (!is_joint(plan) || stage + 1 >= pipeline.stages.size()) return std::nullopt;
  const size_t here = site_of_joint_rank(plan, pipeline.stages[stage].ranks.front());
  const size_t there = site_of_joint_rank(plan, pipeline.stages[stage + 1].ranks.front());
  if (here == there) return std::nullopt;
  const std::string& a = plan.sites[here].name;
  const std::string& b = plan.sites[there].name;
  for (size_t i = 0; i < plan.links.size(); ++i) {
    const FleetLink& link = plan.links[i];
    if ((link.from == a && link.to == b) || (link.from == b && link.to == a)) return i;
  }
  fail("the plan has no link between the sites \"{}\" and \"{}\": make the plan again", a, b);
}

SiteRun run_of_plan(const Plan& plan, const JobConfig& job, size_t site_idx) {
  const SitePlan site = joint_site(plan, site_idx);
  const PlannedSite planned = planned_site(plan, job, site);
  std::vector<int64_t> shares;
  for (const PipelinePlan& pipeline : site.pipelines) shares.push_back(pipeline.sequences);
  SiteRun run = site_run(planned.problem, planned.layout, shares);
  double end_s = 0;
  for (size_t i = 0; i < site.pipelines.size(); ++i) {
    const PipelinePlan& pipeline = site.pipelines[i];
    // The plan's microbatch counts, whatever the planner would choose for these shares.
    run.pipelines[i].sequences = cut_microbatches(pipeline.sequences, pipeline.microbatch);
    for (size_t stage = 0; stage < pipeline.stages.size(); ++stage) {
      run.pipelines[i].stages[stage].in_flight = pipeline.stages[stage].in_flight;
    }
    end_s = std::max(end_s, add_lines(plan, job, pipeline, run.pipelines[i].stages));
  }
  run.agree_s += end_s;
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
