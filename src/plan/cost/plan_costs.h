// The cost model's door for whoever has a Plan and wants its seconds: a simulator, a forecast, a
// comparison with what was measured. A plan holds the profiles of its devices, so nothing else is
// asked. The parts: device/profile.h (a device by operators or by a probe), memory.h (a stage's
// bytes), device/links.h (chips' links, hosts), lines.h (between sites, and exchanges).
#pragma once

#include <optional>

#include "plan/cost/lines.h"
#include "plan/pipeline_time.h"
#include "plan/plan.h"

namespace pelago::plan {

/// One step of a site as stages, messages and reductions with their seconds: simulate_site() plays
/// it once. Pipelines, stages and members are numbered as in the plan. Of a joint plan site_idx is
/// 0 and the run is that of all sites together, its lines in StageCosts::line and message.
/// job: the one of the plan (its model and what it asks of the planner). Throws Failure (exit 1) if
/// the plan lacks a profile.
SiteRun run_of_plan(const Plan& plan, const JobConfig& job, size_t site_idx);

/// The link that a joint plan's pipeline crosses behind this stage, as an index into plan.links;
/// none if the next stage is in the same site. Throws Failure (exit 1) if the plan lacks the link.
std::optional<size_t> link_behind(const Plan& plan, const PipelinePlan& pipeline, size_t stage);

/// Peak bytes of one rank of each stage: [pipeline][stage], numbered as above.
std::vector<std::vector<MemoryPlan>> memory_of_plan(const Plan& plan,
                                                    const JobConfig& job,
                                                    size_t site_idx);

}  // namespace pelago::plan
