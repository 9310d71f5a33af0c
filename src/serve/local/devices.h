// Devices as the engine takes their names: which there can be, which two can hand keys and values
// to one another, and what an emulated chip has room for.
#pragma once

#include <string>

#include "model/config.h"
#include "plan/serving/serving_plan.h"

namespace pelago::serve {

/// Throws Failure (exit 2) unless it is cpu, KIND:NUMBER of a kind that the catalogue knows, or
/// emulated:CHIP. Whether it is here, who opens it finds out.
void check_device(const std::string& device);
/// Throws Failure (exit 2) unless the one can read prompts for the other: two devices, whose pages
/// lie alike.
void check_split(const std::string& prefill, const std::string& decode);

/// Memory of an emulated chip beside the model's weights in 16 bits, for keys and values, GB.
/// Throws Failure (exit 2) if the weights alone do not fit.
double emulated_memory_left_gb(const std::string& device, const model::ModelConfig& config);

/// Of the prompt tokens, how many the decode side had better read itself (plan_serving). 0 if the
/// catalogue does not say what the two are, or if the plan gains nothing by this split: whoever
/// asks for it gets it, and a line in the log.
double planned_local_share(const model::ModelConfig& config,
                           const std::string& prefill,
                           const std::string& decode,
                           const plan::ServingLoad& load);

/// 200 Gbit/s, as an accelerator of a cluster has.
inline constexpr double kSplitLinkBytesS = 25e9;

}  // namespace pelago::serve
