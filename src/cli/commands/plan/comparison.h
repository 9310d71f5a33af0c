// Predicted beside measured: a plan's step by its parts, rank by rank, and memory.
#pragma once

#include <string>
#include <vector>

#include "cli/commands/plan/trial_run.h"
#include "plan/cost/parts.h"
#include "plan/plan.h"

namespace pelago::cli {

struct RankComparison {
  std::string site, device;
  int rank = 0;                           // in its site
  plan::PartSeconds predicted, measured;  // of a mean step
  double predicted_memory_bytes = 0, peak_memory_bytes = 0;
  double late_ratio = 0;  // emulated: of the step, by which the host failed the chip's pace
};

struct Comparison {
  int64_t steps = 0;
  double predicted_step_s = 0, measured_step_s = 0;  // of the slowest site
  std::vector<RankComparison> ranks;                 // of all sites, in plan order
  double step_error() const { return predicted_step_s / measured_step_s - 1; }
  plan::PartSeconds mean_predicted() const;
  plan::PartSeconds mean_measured() const;
  double late_ratio() const;  // of the worst rank
};

Comparison compare(const plan::Plan& plan, const plan::JobConfig& job, const Trial& trial);
std::string to_table(const Comparison& comparison);
std::string to_json(const Comparison& comparison);

}  // namespace pelago::cli
