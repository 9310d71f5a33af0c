// The runtime of a plug-in that lacks a function.
#include <string>

bool fake_is_initialised() { return true; }

namespace torch_npu {
void init_npu(const std::string&) {}
}  // namespace torch_npu
