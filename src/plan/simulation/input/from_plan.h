// A plan as something to play: each site's step stage by stage, and the exchanges between sites.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/job.h"
#include "plan/pipeline_time.h"
#include "plan/plan.h"
#include "plan/simulation/run/run_model.h"

namespace pelago::plan {

/// One step of a site, or of all sites together if their pipelines cross the lines.
struct PlannedStep {
  std::string site;
  SiteRun run;
  std::vector<std::vector<int>> line_of;  // for StepPlay; empty: no pipeline crosses a line
  std::vector<std::string> stage_names;   // "p0 s1 nvidia-h20 x2", pipeline after pipeline
  std::vector<int64_t> chips_of_stage;    // a stage waits for the slowest of its chips
  double tokens = 0;
};

struct PlannedRun {
  /// step_s of the sites is what the closed form of pipeline_time.h says; who plays the steps puts
  /// what they take there. A joint plan is one site without exchanges.
  RunModel model;
  std::vector<PlannedStep> steps;  // by site of the model
};

/// Throws Failure naming what does not fit any more, if the plan was edited.
PlannedRun run_of_plan(const Plan& plan, const JobConfig& job);

}  // namespace pelago::plan
