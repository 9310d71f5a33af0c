#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <ctime>
#include <fstream>

#include "base/clock.h"
#include "base/error.h"
#include "base/threads.h"
#include "chips/checks/checks.h"
#include "chips/cpu/device.h"

namespace pelago::chips::checks {
namespace {

/// Closes a file or socket.
class Descriptor {
 public:
  explicit Descriptor(int descriptor) : descriptor_(descriptor) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  int get() const { return descriptor_; }

 private:
  int descriptor_;
};

double clock_s(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

constexpr double kGiB = 0x1p30;

}  // namespace

Check cpu_instructions() {
  if (cpu_has_bf16()) {
    return {.name = "cpu", .text = "matmul instructions for bf16: yes"};
  }
  const bool has_wide = cpu_has("avx512f") || cpu_has("avx2") || cpu_has("asimd");
  return {
      .level = Check::kWarn,
      .name = "cpu",
      .text = has_wide ? "no bf16 instructions: training on this CPU is in f32"
                       : "neither AVX2 nor NEON: kernels run several times slower",
      .remedy = "a processor with avx512_bf16, amx_bf16 or Arm's bf16 trains about twice as fast"};
}

Check cores() {
  const std::vector<int> allowed = allowed_cores();
  const long installed = sysconf(_SC_NPROCESSORS_ONLN);
  const bool can_bind = bind_to_cores(allowed);
  Check check{.name = "cores",
              .text = fmt::format("{} of {} processors may be used", allowed.size(), installed)};
  if (!can_bind) {
    check.level = Check::kWarn;
    check.text += "; binding threads to them is refused";
    check.remedy =
        "allow sched_setaffinity: unbound workers share processors and halve their speed";
  }
  return check;
}

Check memory() {
  const double total_gib = static_cast<double>(host_memory_bytes()) / kGiB;
  double available_gib = total_gib;
  std::ifstream meminfo("/proc/meminfo");
  for (std::string key, unit; meminfo >> key;) {
    double kib = 0;
    meminfo >> kib;
    std::getline(meminfo, unit);
    if (key == "MemAvailable:") available_gib = std::min(total_gib, kib / 0x1p20);
  }
  Check check{.name = "memory",
              .text = fmt::format("{:.1f} GiB, {:.1f} GiB free", total_gib, available_gib)};
  if (available_gib < 2) {  // each worker holds libtorch, some 0.15 GiB, before any weight
    check.level = Check::kWarn;
    check.remedy = "free some memory, or start fewer workers on this machine";
  }
  return check;
}

Check clocks() {
  // Twice the same wait on both clocks: a wall clock that is being set moves otherwise.
  const double wall_s = clock_s(CLOCK_REALTIME);
  const double start_s = clock_s(CLOCK_MONOTONIC);
  double finest_s = 1;
  double last_s = start_s;
  while (last_s < start_s + 0.02) {
    const double now_s = clock_s(CLOCK_MONOTONIC);
    if (now_s < last_s) {
      return {.level = Check::kFail,
              .name = "clocks",
              .text = "the monotonic clock went backwards",
              .remedy = "choose another clock source in the kernel or the hypervisor"};
    }
    if (now_s > last_s) finest_s = std::min(finest_s, now_s - last_s);
    last_s = now_s;
  }
  const double drift_s = (clock_s(CLOCK_REALTIME) - wall_s) - (clock_s(CLOCK_MONOTONIC) - start_s);
  constexpr double kBeforePelagoS = 1.7e9;  // November 2023: earlier is a clock never set
  if (wall_s < kBeforePelagoS) {
    return {.level = Check::kFail,
            .name = "clocks",
            .text = fmt::format("the wall clock says {:.0f} s since 1970", wall_s),
            .remedy = "set the clock (NTP); certificates of other sites will look not yet valid"};
  }
  Check check{.name = "clocks",
              .text = fmt::format("monotonic to {:.0f} ns, wall clock steady", finest_s * 1e9)};
  if (std::abs(drift_s) > 1e-3) {
    check.level = Check::kWarn;
    check.text = fmt::format("the wall clock moved {:.1f} ms within 20 ms", drift_s * 1e3);
    check.remedy =
        "let NTP settle; only log times suffer, pelago measures with the monotonic clock";
  }
  return check;
}

Check disk(const std::filesystem::path& work_dir) {
  Check check{.level = Check::kFail, .name = "disk"};
  std::error_code error;
  const auto space = std::filesystem::space(work_dir, error);
  std::string path = (work_dir / ".pelago-doctor-XXXXXX").string();
  const Descriptor file(error ? -1 : mkstemp(path.data()));
  if (file.get() < 0) {
    check.text = fmt::format(
        "{} cannot be written: {}", work_dir.string(), error ? error.message() : strerror(errno));
    check.remedy = "choose a folder that exists and that you may write to";
    return check;
  }
  const std::string block(1 << 16, 'x');
  const double start_s = steady_now_s();
  const bool is_written =
      write(file.get(), block.data(), block.size()) == static_cast<ssize_t>(block.size()) &&
      fsync(file.get()) == 0;
  const double fsync_ms = (steady_now_s() - start_s) * 1e3;
  unlink(path.c_str());
  if (!is_written) {
    check.text = fmt::format("writing 64 KiB to {} failed", work_dir.string());
    check.remedy = "free disk space or choose another folder";
    return check;
  }
  const double free_gib = static_cast<double>(space.available) / kGiB;
  check.text = fmt::format("{:.1f} GiB free in {}, fsync of 64 KiB in {:.1f} ms",
                           free_gib,
                           std::filesystem::weakly_canonical(work_dir, error).string(),
                           fsync_ms);
  check.level = Check::kOk;
  if (free_gib < 5 || fsync_ms > 200) {
    check.level = Check::kWarn;
    check.remedy = free_gib < 5 ? "a checkpoint of a 1B model takes 14 GB: free some space"
                                : "this disk is slow to make data safe; use a local one";
  }
  return check;
}

Check port(int port) {
  const Descriptor listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  address.sin_port = htons(static_cast<uint16_t>(port));
  const auto* const generic = reinterpret_cast<const sockaddr*>(&address);
  const bool is_valid = port >= 0 && port <= 65535;
  if (!is_valid || listener.get() < 0 || bind(listener.get(), generic, sizeof address) != 0 ||
      listen(listener.get(), 1) != 0) {
    return {.level = Check::kFail,
            .name = "port",
            .text = fmt::format("port {} cannot be listened on: {}",
                                port,
                                is_valid ? strerror(errno) : "ports are 0 to 65535"),
            .remedy = "choose another port, or end the program that holds it"};
  }
  return {
      .name = "port",
      .text = port == 0 ? "a free port can be listened on" : fmt::format("port {} is free", port)};
}

}  // namespace pelago::chips::checks
