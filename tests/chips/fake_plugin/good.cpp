// The runtime of a plug-in that works, if somebody initialises it.
#include <cstdio>
#include <string>

static bool is_initialised = false;
bool fake_is_initialised() { return is_initialised; }

namespace torch_npu {
void init_npu(const std::string& device) {
  std::printf("init %s\n", device.c_str());
  is_initialised = true;
}
void finalize_npu() { std::printf("finalize\n"); }
}  // namespace torch_npu
