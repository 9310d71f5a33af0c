#include "chips/cpu/device.h"

#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>

namespace pelago::chips {
namespace {

class Cpu final : public Device {
 public:
  explicit Cpu(std::string name)
      : name_(std::move(name)), dtype_(cpu_has_bf16() ? c10::kBFloat16 : c10::kFloat) {}

  c10::Device torch_device() const override { return c10::Device(c10::DeviceType::CPU); }
  const std::string& name() const override { return name_; }
  const Chip* chip() const override { return nullptr; }
  c10::ScalarType training_dtype() const override { return dtype_; }
  void synchronize() override {}
  /// The process's memory: on a CPU nothing tells the tensors from the rest.
  DeviceStats stats() const override {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    DeviceStats stats;
    stats.peak_bytes = usage.ru_maxrss * int64_t{1024};
    int64_t total_pages = 0;
    int64_t used_pages = 0;
    std::ifstream("/proc/self/statm") >> total_pages >> used_pages;
    stats.used_bytes = used_pages * sysconf(_SC_PAGESIZE);
    return stats;
  }
  void reset_stats() override {}
  int64_t memory_bytes() const override { return host_memory_bytes(); }

 private:
  std::string name_;
  c10::ScalarType dtype_;
};

}  // namespace

std::unique_ptr<Device> open_cpu(const std::string& name) {
  keep_freed_memory();
  return std::make_unique<Cpu>(name);
}

int64_t host_memory_bytes() {
  const int64_t physical = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  int64_t container = std::numeric_limits<int64_t>::max();
  std::ifstream("/sys/fs/cgroup/memory.max") >> container;  // "max" leaves 0
  return container > 0 ? std::min(physical, container) : physical;
}

bool cpu_has(const std::string& flag) {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (!line.starts_with("flags") && !line.starts_with("Features")) continue;
    std::istringstream words(line);
    for (std::string word; words >> word;) {
      if (word == flag) return true;
    }
    return false;  // one processor speaks for all
  }
  return false;
}

bool cpu_has_bf16() { return cpu_has("avx512_bf16") || cpu_has("amx_bf16") || cpu_has("bf16"); }

void keep_freed_memory() {
  constexpr int kKeepBytes = 1 << 30;
  mallopt(M_MMAP_THRESHOLD, kKeepBytes);
  mallopt(M_TRIM_THRESHOLD, kKeepBytes);
}

}  // namespace pelago::chips
