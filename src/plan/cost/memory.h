// What a rank's memory holds at its peak, part by part. The trainer's allocations are followed one
// by one: what autograd keeps of a block, what a block makes while it goes backward, what the head
// keeps, what lies between two stages. So the figure is that of a run, not an upper bound.
#pragma once

#include <cstdint>

#include "plan/cost/sizes.h"
#include "plan/plan.h"

namespace pelago::plan {

/// How a stage works, beside what it holds.
struct StageLoad {
  int64_t microbatch = 1;         // sequences at once
  int64_t in_flight = 1;          // microbatches that went forward and not yet backward, at most
  double optimizer_share = 1;     // of the held values whose optimizer state lies here (ZeRO-1)
  double value_bytes = 2;         // of weights and activations: 2 or 4
  bool is_half = false;           // fp16: the head's gradients are f32
  bool is_alone = true;           // no other stage: nothing is sent
  bool is_scattered = false;      // tensor parallelism in the site: cut matrices lie apart
  bool has_fused_kernels = true;  // else attention, the head and AdamW make whole matrices
  bool has_muon = false;          // which makes matrices of its own, one parameter at a time
};

MemoryPlan stage_memory(const ModelSizes& sizes, const StageShape& shape, const StageLoad& load);

}  // namespace pelago::plan
