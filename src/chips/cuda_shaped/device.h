// CUDA devices, and chips whose vendor ships a libtorch that calls itself CUDA. Only libtorch's
// generic interface and the driver's C functions, found by name: no SDK is needed to build this.
#pragma once

#include <memory>
#include <string>

#include "chips/device.h"

namespace pelago::chips {

/// device_idx: as CUDA counts. Throws Failure naming what is missing if there is no such device.
std::unique_ptr<Device> open_cuda(const std::string& name,
                                  int device_idx,
                                  const Catalogue& catalogue);

/// Devices that this libtorch can drive; 0 if it was built without CUDA.
int num_cuda_devices();

/// What the driver says of a device; an empty name if there is no driver.
struct CudaProperties {
  std::string name;
  int64_t memory_bytes = 0;
  int compute_major = 0;
};
CudaProperties read_cuda_properties(int device_idx);

/// The catalogue's chip for a driver's device name ("NVIDIA A100-SXM4-80GB"); null if none fits.
const Chip* match_chip(const Catalogue& catalogue, const CudaProperties& properties);

}  // namespace pelago::chips
