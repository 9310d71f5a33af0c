#include "chips/ucx/direct_copy.h"

#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <sstream>

#include "base/error.h"
#include "base/files.h"

namespace pelago::chips {
namespace {

constexpr uint64_t kWord = 0x70656c61676f2121;  // what a reader must find
const uint64_t readable_word = kWord;

/// Process numbers mean the same to two processes if both lines are equal.
std::string machine_id() {
  std::error_code ignored;
  const auto pid_namespace = std::filesystem::read_symlink("/proc/self/ns/pid", ignored);
  const std::filesystem::path boot_id = "/proc/sys/kernel/random/boot_id";
  if (!std::filesystem::exists(boot_id, ignored)) return "unknown";
  std::string id = read_text_file(boot_id);
  std::erase(id, '\n');
  return id + pid_namespace.string();
}

}  // namespace

std::string describe_own_memory() {
#ifdef PR_SET_PTRACER
  ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);  // fails where there is no Yama: no matter
#endif
  return fmt::format(
      "{} {} {}", machine_id(), ::getpid(), reinterpret_cast<uintptr_t>(&readable_word));
}

bool can_read_memory_of(const std::string& description) {
  std::istringstream fields(description);
  std::string machine;
  pid_t process = 0;
  uintptr_t address = 0;
  if (!(fields >> machine >> process >> address)) return false;
  if (machine == "unknown" || machine != machine_id()) return false;
  uint64_t word = 0;
  const iovec here = {.iov_base = &word, .iov_len = sizeof word};
  const iovec there = {.iov_base = reinterpret_cast<void*>(address), .iov_len = sizeof word};
  return ::process_vm_readv(process, &here, 1, &there, 1, 0) == sizeof word && word == kWord;
}

}  // namespace pelago::chips
