// The runtime of a plug-in whose initialisation fails, prints that, and returns.
#include <cstdio>
#include <string>

bool fake_is_initialised() { return false; }

namespace torch_npu {
void init_npu(const std::string&) { std::printf("[ERROR] aclInit failed, error code is 507008\n"); }
void finalize_npu() {}
}  // namespace torch_npu
