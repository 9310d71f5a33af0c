// One call of an operator, kept with its inputs so that another device can make it again. What is
// recorded is what the dispatcher sees, so a model's own run gives the inputs of every operator in
// it, forward and backward, and nobody lists them by hand.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "chips/tensor.h"

namespace pelago::chips {

/// An argument; monostate is None. Tensors are on the CPU and share memory with nobody.
using CallArgument = std::variant<std::monostate, Tensor, double, int64_t, bool>;

struct OperatorCall {
  std::string op;        // "pelago::attention", "aten::mm"
  std::string overload;  // "" or as "Tensor" in aten::add.Tensor
  std::string phase;     // "forward", "backward" or "step": which part of the run it comes from
  std::vector<CallArgument> arguments;
};

/// While it lives, keeps the operators called on this thread that do a model's arithmetic: all of
/// pelago's, and libtorch's matmuls and look-ups. The first call of each shape is kept; of long
/// vectors that are worked on number by number, the first million. One at a time a thread.
class CallRecorder {
 public:
  CallRecorder();
  CallRecorder(const CallRecorder&) = delete;
  CallRecorder& operator=(const CallRecorder&) = delete;
  ~CallRecorder();

  void enter_phase(std::string phase) { phase_ = std::move(phase); }
  const std::vector<OperatorCall>& calls() const { return calls_; }

 private:
  friend struct CallObserver;
  uint64_t handle_ = 0;  // of libtorch's observer
  std::string phase_ = "forward";
  std::vector<std::string> seen_;  // operator, phase and shapes of each call kept
  std::vector<OperatorCall> calls_;
};

/// Makes the call on a device. bf16 arguments are given in dtype; others keep theirs. Returns what
/// it returned, then what it wrote to, on the CPU. Throws c10::Error if the device refuses it.
std::vector<Tensor> replay(const OperatorCall& call, c10::Device device, c10::ScalarType dtype);

}  // namespace pelago::chips
