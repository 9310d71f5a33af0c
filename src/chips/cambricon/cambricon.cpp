// torch_mlu registers its guard and the name "mlu" when it is loaded, and initialises on first use
// (guard_impl.cpp, MLUHooks.cpp of Cambricon/torch_mlu): nothing to call.
#include "chips/cambricon/cambricon.h"

namespace pelago::chips {
namespace {

DeviceProperties read_properties(int device_idx) {
  return read_driver({.libraries = {"libcndrv.so", "libcndrv.so.2"},
                      .initialise = "cnInit",
                      .get_device = "cnDeviceGet",
                      .get_name = "cnDeviceGetName",
                      .get_memory = "cnDeviceTotalMem"},
                     device_idx);
}

}  // namespace

Vendor cambricon() {
  return {
      .name = "Cambricon",
      .torch_device = "mlu",
      .libraries = {"libtorch_mlu.so"},
      .places = {{.variable = "TORCH_MLU_HOME", .subfolder = "lib"},
                 {.variable = "NEUWARE_HOME", .prefix = "/usr/local/neuware"}},
      .how_to_get =
          "install torch_mlu for this libtorch (Cambricon/torch_mlu; pelago then has to be "
          "built with its C++ ABI, which is 0 by default) and set NEUWARE_HOME",
      .collective = "cncl",
      .tool = "cnmon",
      .nodes = {"/dev/cambricon_ctl", "/dev/cambricon_dev0"},
      .quirks =
          {"Wheels are built with _GLIBCXX_USE_CXX11_ABI=0, as torch's own CPU wheels were: "
           "build pelago with the same.",
           "For torch 2.1 and 2.3 it needs a patched torch; from 2.4 on the stock CPU build."},
      .read_properties = &read_properties,
  };
}

}  // namespace pelago::chips
