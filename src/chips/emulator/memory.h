// The chip's memory. It is host memory under another name: behind the data pointer of every tensor
// of the chip stands a Block that holds a CPU storage over the same bytes. A kernel of the CPU thus
// works on the chip's tensors without a copy, and what a CPU kernel allocates becomes the chip's by
// putting a Block around it.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/Storage.h>

namespace pelago::emulator {

inline c10::Device chip_device() { return {c10::DeviceType::PrivateUse1, 0}; }

/// Gives out memory of the chip and counts it.
c10::Allocator* chip_allocator();

inline bool is_on_chip(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == c10::DeviceType::PrivateUse1;
}

/// A CPU tensor over the same bytes, sizes and strides.
at::Tensor host_alias(const at::Tensor& on_chip);

/// A tensor of the chip that takes over the CPU tensor's storage, which nobody else may keep.
/// Throws c10::OutOfMemoryError if it does not fit, c10::Error if the chip lacks its dtype.
at::Tensor adopt(const at::Tensor& host);

/// A tensor of the chip over base's storage with the sizes, strides and dtype of host, which is a
/// view of base's host alias.
at::Tensor view_like(const at::Tensor& base, const at::Tensor& host);

/// After a CPU kernel wrote to an alias: if it resized it, the chip's tensor follows.
void follow_host(const at::Tensor& on_chip, const at::Tensor& host);

}  // namespace pelago::emulator
