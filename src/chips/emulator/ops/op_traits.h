// What the emulator must know of an operator before it runs it: how many arguments it takes, which
// of them it writes to, whether the host needs its answer, and what it would cost on a real chip.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <span>

#include "chips/emulator/machine.h"

namespace pelago::emulator {

/// One tensor of the chip among an operator's arguments, and its alias on the host.
struct TensorArgument {
  at::Tensor on_chip;
  at::Tensor host;
  int argument_idx;
  bool is_written;
  bool is_read;
};
using TensorArguments = c10::SmallVector<TensorArgument, 8>;

enum class CostKind {
  kStream,             // reads its inputs and writes its outputs once
  kFree,               // a view
  kFill,               // writes only
  kGather,             // reads as many rows as it writes
  kMatmul,             // inner product over the last dimension of the left matrix
  kAttention,          // pelago::attention
  kAttentionBackward,  // pelago::attention_backward
  kCrossEntropy,       // pelago::cross_entropy
};

struct OpTraits {
  size_t num_arguments = 0;
  size_t num_returns = 0;
  uint64_t written = 0;     // bit i: argument i is written to
  uint64_t write_only = 0;  // bit i: argument i is an `out`, whose old content nobody reads
  uint64_t dtypes = 0;      // bit i: argument i is a dtype
  bool host_waits = false;
  CostKind cost = CostKind::kStream;
  int left_idx = 0;  // kMatmul and the attentions: the argument that is the left matrix or q;
                     // the right matrix or k follows it
  uint64_t f32_outputs = 0;  // bit i: output i is f32 whatever the inputs are
  bool half_as_f32 = false;  // the CPU has no fp16 kernel: found out at the first call
};

/// The traits of op, kept by the calling thread.
OpTraits& traits_of(const c10::OperatorHandle& op);

/// outputs: the results as the CPU kernel made them.
Cost cost_of(const OpTraits& traits,
             std::span<const TensorArgument> arguments,
             std::span<const at::Tensor> outputs);

}  // namespace pelago::emulator
