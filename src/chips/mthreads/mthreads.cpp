// torch_musa leaves it to the program to name libtorch's slot (examples/cpp/example-app.cpp of
// MooreThreads/torch_musa calls register_privateuse1_backend("musa")). Its library is the one of
// its Python package: a worker carries libpython, which must be on the loader's path.
#include "chips/mthreads/mthreads.h"

namespace pelago::chips {
namespace {

DeviceProperties read_properties(int device_idx) {
  return read_driver({.libraries = {"libmusa.so.1", "libmusa.so"},
                      .initialise = "muInit",
                      .get_device = "muDeviceGet",
                      .get_name = "muDeviceGetName",
                      .get_memory = "muDeviceTotalMem_v2"},
                     device_idx);
}

}  // namespace

Vendor mthreads() {
  return {
      .name = "Moore Threads",
      .torch_device = "musa",
      .libraries = {"libmusa_python.so"},
      .places = {{.variable = "TORCH_MUSA_HOME", .subfolder = "lib"},
                 {.variable = "MUSA_HOME", .prefix = "/usr/local/musa", .subfolder = "lib"}},
      .how_to_get =
          "install torch_musa for this libtorch (MooreThreads/torch_musa), set "
          "TORCH_MUSA_HOME to its package folder, and put libpython and "
          "libtorch_python.so on the library path",
      .slot_name = "musa",
      .collective = "mccl-mthreads",
      .tool = "mthreads-gmi",
      .nodes = {"/dev/mtgpu.0", "/dev/mtgpu0"},
      .quirks = {"The plug-in links libtorch_python: the worker process carries a Python library.",
                 "Its collectives need an S4000 or later."},
      .read_properties = &read_properties,
  };
}

}  // namespace pelago::chips
