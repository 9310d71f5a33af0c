// CUDA devices, and chips whose vendor ships a libtorch that calls itself CUDA. Only libtorch's
// generic interface and the driver's C functions, found by name: no SDK is needed to build this.
#pragma once

#include <memory>
#include <string>

#include "chips/device.h"
#include "chips/vendor/vendor.h"

namespace pelago::chips {

/// device_idx: as CUDA counts. Throws Failure naming what is missing if there is no such device.
std::unique_ptr<Device> open_cuda(const std::string& name,
                                  int device_idx,
                                  const Catalogue& catalogue);

/// Devices that this libtorch can drive; 0 if it was built without CUDA.
int num_cuda_devices();

}  // namespace pelago::chips
