// Copies beside the work of a device that has streams, as CUDA and what is shaped like it: one
// stream for copies out, one for copies in, and pinned memory on the host. Only libtorch's generic
// streams and events, so any plug-in that has them can use this.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <memory>

#include "chips/device.h"

namespace pelago::chips {

/// The methods do what those of Device of the same names promise.
class StreamCopies {
 public:
  explicit StreamCopies(c10::Device device);

  WorkMark mark() const;
  std::unique_ptr<HostCopy> start_copy_to_host(const Tensor& tensor, const WorkMark& after) const;
  Tensor copy_to_device(const Tensor& host) const;
  void copy_into(Tensor& on_device, const Tensor& host) const;
  static Tensor make_host_tensor(at::IntArrayRef sizes, c10::ScalarType dtype);

 private:
  c10::Stream current() const { return streams_.getStream(device_); }

  c10::Device device_;
  c10::impl::VirtualGuardImpl streams_;
  c10::Stream out_;
  c10::Stream in_;
};

}  // namespace pelago::chips
