#include "chips/enflame/enflame.h"

namespace pelago::chips {

Vendor enflame() {
  return {
      .name = "Enflame",
      .torch_device = "gcu",
      .libraries = {"libtorch_gcu.so"},
      .places = {{.variable = "TORCH_GCU_HOME", .subfolder = "lib"},
                 {.prefix = "/opt/tops", .subfolder = "lib"}},
      .how_to_get =
          "build libtorch_gcu for this libtorch (EnflameTechnology/torch_gcu) and set "
          "TORCH_GCU_HOME to its folder libtorch_gcu",
      .tool = "efsmi",
      .nodes = {"/dev/gcu0", "/dev/gcu"},
      .quirks = {"Its collectives (ECCL) are not called: its chips exchange through the host.",
                 "The chip's name and memory are not asked of its driver: the dtype is found by "
                 "trying bf16."},
  };
}

}  // namespace pelago::chips
