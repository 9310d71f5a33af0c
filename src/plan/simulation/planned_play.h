// A plan played through: its steps stage by stage, its exchanges line by line.
#pragma once

#include "plan/simulation/input/from_plan.h"
#include "plan/simulation/output/report.h"

namespace pelago::plan {

struct PlannedOptions {
  RunOptions run;
  FaultModel faults;
  int64_t trace_stage_steps = 2;  // of each site, so many steps have every microbatch in the trace
};

/// Plays every site's step once, or anew each time if faults.step_deviation makes devices late;
/// then the run. model: filled, and the report refers to it. Throws Failure as run_of_plan() does.
SimulationReport play_plan(const Plan& plan,
                           const JobConfig& job,
                           const PlannedOptions& options,
                           RunModel& model);

}  // namespace pelago::plan
