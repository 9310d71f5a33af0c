// What differs between them is where their libraries lie and what shows that they are there; the
// way in is libtorch_cuda for all. Names of files: the vendors' container images and FlagCX.
#include "chips/cuda_shaped/vendors.h"

namespace pelago::chips {
namespace {

DriverNames cuda_driver(std::vector<std::string> libraries) {
  constexpr int kComputeCapabilityMajor = 75;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
  return {.libraries = std::move(libraries),
          .initialise = "cuInit",
          .get_device = "cuDeviceGet",
          .get_name = "cuDeviceGetName",
          .get_memory = "cuDeviceTotalMem_v2",
          .get_attribute = "cuDeviceGetAttribute",
          .compute_major_attribute = kComputeCapabilityMajor};
}

DeviceProperties read_cuda_driver(int device_idx) {
  return read_driver(cuda_driver({"libcuda.so.1", "libcuda.so"}), device_idx);
}

DeviceProperties read_maca_runtime(int device_idx) {
  return read_driver({.libraries = {"libmcruntime.so"},
                      .initialise = "mcInit",
                      .get_device = "mcDeviceGet",
                      .get_name = "mcDeviceGetName"},
                     device_idx);
}

DeviceProperties read_dtk_runtime(int device_idx) {
  return read_driver({.libraries = {"libgalaxyhip.so.5", "libgalaxyhip.so", "libamdhip64.so"},
                      .initialise = "hipInit",
                      .get_device = "hipDeviceGet",
                      .get_name = "hipDeviceGetName",
                      .get_memory = "hipDeviceTotalMem"},
                     device_idx);
}

}  // namespace

Vendor nvidia() {
  return {
      .name = "NVIDIA",
      .torch_device = "cuda",
      .places = {{.variable = "CUDA_HOME", .prefix = "/usr/local/cuda"}},
      .how_to_get = "build pelago against a libtorch with CUDA (-DCMAKE_PREFIX_PATH=its folder)",
      .collective = "nccl",
      .tool = "nvidia-smi",
      .nodes = {"/dev/nvidiactl"},
      // cuBLAS gives the same bits every time only with a workspace of a fixed size.
      .environment = {{"CUBLAS_WORKSPACE_CONFIG", ":4096:8"}},
      .read_properties = &read_cuda_driver,
  };
}

Vendor metax() {
  return {
      .name = "MetaX",
      .torch_device = "cuda",
      .places = {{.variable = "MACA_PATH", .prefix = "/opt/maca", .subfolder = "lib"}},
      .how_to_get = "build pelago against the libtorch of MetaX (mcPytorch for MACA)",
      .collective = "mccl-metax",
      .tool = "mx-smi",
      .nodes = {"/dev/mxcd"},
      .quirks = {"Its collectives have the file name of Moore Threads' (libmccl.so): one machine's "
                 "library path must hold only one of them."},
      .read_properties = &read_maca_runtime,
  };
}

Vendor hygon() {
  return {
      .name = "Hygon",
      .torch_device = "cuda",
      .places = {{.variable = "ROCM_PATH", .prefix = "/opt/dtk", .subfolder = "lib"}},
      .how_to_get = "source the env.sh of DTK and build pelago against its libtorch",
      .collective = "rccl",
      .tool = "hy-smi",
      .nodes = {"/dev/mkfd", "/opt/hyhal"},
      .quirks = {"A wavefront has 64 lanes; only kernels of the library run on it."},
      .read_properties = &read_dtk_runtime,
  };
}

Vendor iluvatar() {
  return {
      .name = "Iluvatar CoreX",
      .torch_device = "cuda",
      .places = {{.variable = "COREX_HOME", .prefix = "/usr/local/corex"}},
      .how_to_get = "build pelago against the libtorch of CoreX",
      .collective = "nccl",
      .tool = "ixsmi",
      .nodes = {"/dev/iluvatar0", "/dev/iluvatar"},
      .read_properties = &read_cuda_driver,
  };
}

Vendor ppu() {
  return {
      .name = "Alibaba T-Head",
      .torch_device = "cuda",
      .places = {{.variable = "PPU_SDK", .prefix = "/usr/local/PPU_SDK", .subfolder = "lib"}},
      .how_to_get = "source the envsetup.sh of the PPU SDK and build pelago against its libtorch",
      .collective = "nccl",
      .tool = "ppu-smi",
      .nodes = {"/dev/alixpu_ctl", "/dev/alixpu"},
      .read_properties = &read_cuda_driver,
  };
}

}  // namespace pelago::chips
