// A few steps of a plan, to see what they really take: in a folder of its own that goes when it is
// over, without checkpoints, evaluations that matter, or a model at the end.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "cli/setup.h"
#include "train/messages.h"

namespace pelago::cli {

struct TrialArguments {
  std::filesystem::path job, fleet;
  std::vector<std::string> overrides;  // those that the plan was made with
  int64_t steps = 0;                   // to measure
};

struct Trial {
  std::vector<std::vector<train::StepReport>> steps;  // by site, those to measure
};

/// Steps before those that count: memory is mapped, pipelines meet, and a report has parts of the
/// step before it.
inline constexpr int64_t kWarmUpSteps = 2;

/// Carries the plan out until every site has done its steps, and ends all processes at once. Ctrl-C
/// is a Failure, and leaves as little behind. Throws Failure if the run fails, saying so.
Trial run_trial(const TrialArguments& arguments, const plan::Plan& plan);

}  // namespace pelago::cli
