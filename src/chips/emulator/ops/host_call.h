// Runs any operator of libtorch on the chip's tensors with the CPU's kernel, in place and without
// copies, and charges the chip's clock for it.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace pelago::emulator {

/// The boxed fallback of the back end. Throws c10::Error for a tensor of the host among tensors of
/// the chip, as a real chip would; for a dtype the chip lacks; and when memory is exhausted.
void run_on_host(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

/// aten::_copy_from: between host and chip in either direction, or within the chip. Reading from
/// the chip waits for it.
at::Tensor copy_between(const at::Tensor& from, const at::Tensor& to, bool non_blocking);

}  // namespace pelago::emulator
