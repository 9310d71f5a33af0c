// The engine's forward pass with the trainer's own transformer, on whatever device libtorch drives.
// It is the plain twin of the CPU's runner, and what serves from a chip that has no runner of its
// own. Its pages lie on the device; each chunk gathers its sequence's keys and values from them.
#pragma once

#include <memory>

#include "model/config.h"
#include "serve/runner/model_runner.h"

namespace pelago::serve {

struct TransformerRunnerOptions {
  std::string device = "cpu";
  std::string dtype = "bf16";  // of weights, keys and values: "f32", "bf16" or "f16"
  int64_t page_tokens = 32;
  int64_t num_pages = 256;
  int64_t max_batch_tokens = 512;
};

/// Throws Failure naming file, tensor or option.
std::unique_ptr<ModelRunner> open_transformer_runner(const std::filesystem::path& folder,
                                                     const TransformerRunnerOptions& options);

}  // namespace pelago::serve
