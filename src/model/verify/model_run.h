// One pass of a verification's model on one device, from weights to new weights.
#pragma once

#include <functional>
#include <vector>

#include "chips/tensor.h"
#include "chips/torch.h"
#include "model/config.h"
#include "model/verify/verification.h"

namespace pelago::model {

struct ModelRun {
  Tensor loss;                       // f32 scalar, a token
  Tensor gradient;                   // f32 [N], of that loss
  Tensor step;                       // f32 [N], what AdamW's first step adds to the weights
  std::vector<ParameterSpec> specs;  // whose the values of [N] are
};

/// Results are on the CPU. enter_phase hears "forward", "backward" and "step" as they begin.
ModelRun run_model(const VerificationTask& task,
                   c10::Device device,
                   c10::ScalarType dtype,
                   const std::function<void(const char* phase)>& enter_phase);

}  // namespace pelago::model
