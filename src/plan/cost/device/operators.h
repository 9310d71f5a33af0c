// What a chip of the catalogue would need for a job, before anyone has switched one on: the
// operators of a training step one by one, each as long as its matrix products or its traffic with
// memory take, whichever is longer, plus a moment to start it. None overlap, because a step is a
// chain of operators. For models of a few million parameters the starts are most of it.
#pragma once

#include "plan/cost/sizes.h"

namespace pelago::plan {

/// Rates of one device.
struct DeviceRates {
  double flop_s = 0;       // matrix products in the training dtype
  double bytes_s = 0;      // of its memory
  double launch_s = 0;     // between two operators
  double value_bytes = 2;  // of weights and activations
};

/// Seconds by what they go to.
struct OperatorTime {
  double compute_s = 0, memory_s = 0, launch_s = 0;
  double total() const { return compute_s + memory_s + launch_s; }
};

/// Of a microbatch of so many sequences.
OperatorTime block_forward_time(const ModelSizes& sizes,
                                const DeviceRates& rates,
                                double sequences);
OperatorTime block_backward_time(const ModelSizes& sizes,
                                 const DeviceRates& rates,
                                 double sequences);
OperatorTime embedding_time(const ModelSizes& sizes, const DeviceRates& rates, double sequences);
OperatorTime head_time(const ModelSizes& sizes, const DeviceRates& rates, double sequences);
/// Of the optimizer, for so many values.
OperatorTime update_time(const DeviceRates& rates, double values, double num_runs);
/// What Muon takes for a block's matrices, as chips::muon_step makes its operators.
OperatorTime muon_time(const ModelSizes& sizes, const DeviceRates& rates);
/// What AdamW would take for them, as a part of update_time().
OperatorTime block_adamw_time(const ModelSizes& sizes, const DeviceRates& rates);
/// Arithmetic of one sequence through one block, forward.
double block_forward_flops(const ModelSizes& sizes);
/// Arithmetic of Muon's five iterations for a block's matrices.
double muon_flops(const ModelSizes& sizes);

}  // namespace pelago::plan
