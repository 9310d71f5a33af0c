// What a device is asked before it is trusted with work: two lines of arithmetic.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>

#include "chips/vendor/vendor.h"

namespace pelago::chips {

class Device;

/// A plug-in may print its troubles and go on. What cannot hold a tensor is not initialised.
/// Throws Failure naming the device and what to look at.
void hold_a_tensor(const std::string& name, c10::Device device, const Vendor& vendor);

/// Whether a bf16 matmul comes out right: for chips of which nobody knows more.
bool computes_in_bf16(c10::Device device);

/// Throws Failure naming device, chip and what it has instead, if the chip lacks the dtype.
void require_dtype(const Device& device, c10::ScalarType dtype);

}  // namespace pelago::chips
