// What a driver says of a device. Every vendor but one copied the shape of CUDA's driver interface
// under another prefix, so one function asks them all; the library and its functions are found by
// name, and no SDK is needed to build this.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "chips/catalogue.h"

namespace pelago::chips {

struct DeviceProperties {
  std::string name;          // "NVIDIA A100-SXM4-80GB"; empty if there is no driver
  int64_t memory_bytes = 0;  // 0: unknown
  int compute_major = 0;     // CUDA's compute capability; 0: unknown
};

/// The names that a driver's functions go by. A missing one only leaves its answer out.
struct DriverNames {
  std::vector<std::string> libraries = {};  // in the order they are tried
  const char* initialise = nullptr;         // int (unsigned flags)
  const char* get_device = nullptr;         // int (int* device, int device_idx)
  const char* get_name = nullptr;           // int (char* name, int num_bytes, int device)
  const char* get_memory = nullptr;         // int (size_t* num_bytes, int device)
  const char* get_attribute = nullptr;      // int (int* value, int attribute, int device)
  int compute_major_attribute = 0;          // 0: not asked
};
DeviceProperties read_driver(const DriverNames& names, int device_idx);

/// The catalogue's chip for a driver's device name; null if none fits. torch_device: "cuda".
const Chip* match_chip(const Catalogue& catalogue,
                       std::string_view torch_device,
                       const DeviceProperties& properties);

}  // namespace pelago::chips
