#include "chips/amd/amd.h"

namespace pelago::chips {
namespace {

DeviceProperties read_properties(int device_idx) {
  return read_driver({.libraries = {"libamdhip64.so.6", "libamdhip64.so"},
                      .initialise = "hipInit",
                      .get_device = "hipDeviceGet",
                      .get_name = "hipDeviceGetName",
                      .get_memory = "hipDeviceTotalMem"},
                     device_idx);
}

}  // namespace

Vendor amd() {
  return {
      .name = "AMD",
      .torch_device = "cuda",
      .places = {{.variable = "ROCM_PATH", .prefix = "/opt/rocm", .subfolder = "lib"}},
      .how_to_get = "build pelago against libtorch's ROCm build (-DCMAKE_PREFIX_PATH=its folder)",
      .collective = "rccl",
      .tool = "rocm-smi",
      .nodes = {"/dev/kfd"},
      .quirks = {"A wavefront has 64 lanes; only kernels of the library run on it, so nothing here "
                 "depends on that."},
      .read_properties = &read_properties,
  };
}

}  // namespace pelago::chips
