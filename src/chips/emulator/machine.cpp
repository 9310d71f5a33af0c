#include "chips/emulator/machine.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <ctime>

namespace pelago::emulator {
namespace {

double steady_s() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// Sleeps to an absolute time, so that a signal or a late wake-up does not lengthen the wait.
void sleep_until(double deadline_s) {
  timespec deadline{};
  deadline.tv_sec = static_cast<time_t>(std::floor(deadline_s));
  deadline.tv_nsec = static_cast<long>((deadline_s - std::floor(deadline_s)) * 1e9);
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, nullptr) == EINTR) {
  }
}

constexpr double kMiB = 1024.0 * 1024.0;

}  // namespace

Machine& machine() {
  static Machine* const the_machine = new Machine;  // tensors may outlive every static destructor
  return *the_machine;
}

int32_t Machine::open(const Settings& settings) {
  if (settings.abi_version != kAbiVersion) return kOtherAbi;
  if (is_open_.exchange(true)) return kAlreadyOpen;
  settings_ = settings;
  const std::lock_guard lock(clock_mutex_);
  clock_ = PacedClock();
  host_busy_s_ = flops_ = 0;
  peak_bytes_ = used_bytes_.load();
  return kOpened;
}

void Machine::close() { is_open_ = false; }

void Machine::take_bytes(int64_t num_bytes) {
  const int64_t used_bytes = used_bytes_ += num_bytes;
  if (static_cast<double>(used_bytes) > settings_.memory_bytes) {
    used_bytes_ -= num_bytes;
    TORCH_CHECK_WITH(OutOfMemoryError,
                     false,
                     "emulated ",
                     settings_.chip,
                     " is out of memory: it has ",
                     settings_.memory_bytes / kMiB,
                     " MiB, ",
                     static_cast<double>(used_bytes - num_bytes) / kMiB,
                     " MiB are in use and ",
                     static_cast<double>(num_bytes) / kMiB,
                     " MiB more are needed; use a smaller microbatch or model");
  }
  int64_t peak_bytes = peak_bytes_;
  while (used_bytes > peak_bytes && !peak_bytes_.compare_exchange_weak(peak_bytes, used_bytes)) {
  }
}

void Machine::check_dtype(c10::ScalarType dtype) const {
  TORCH_CHECK(dtype != c10::kBFloat16 || settings_.has_bf16 != 0,
              "emulated ",
              settings_.chip,
              " has no bf16; use fp16 or f32");
}

void Machine::begin_work() {
  const std::lock_guard lock(clock_mutex_);
  if (clock_.is_idle()) clock_.begin(steady_s());
}

void Machine::end_work(const Cost& cost, double host_s) {
  const double compute_s = cost.flops_16bit / settings_.gemm_16bit_flop_s +
                           cost.flops_32bit / settings_.gemm_32bit_flop_s;
  const double memory_s = cost.bytes / settings_.memory_bytes_per_s;
  const double link_s = cost.link_bytes / settings_.host_link_bytes_per_s;
  const double launch_s = cost.is_launched ? settings_.launch_s : 0;
  const double chip_s = std::max(compute_s, memory_s) + link_s + launch_s;
  const std::lock_guard lock(clock_mutex_);
  clock_.charge(chip_s * settings_.slowdown);
  host_busy_s_ += host_s;
  flops_ += cost.flops_16bit + cost.flops_32bit;
}

void Machine::synchronize() {
  double wake_s = 0;
  {
    const std::lock_guard lock(clock_mutex_);
    const double now_s = steady_s();
    const double wait_s = clock_.synchronize(now_s);
    if (wait_s > 0) wake_s = now_s + wait_s;
  }
  if (wake_s > 0) sleep_until(wake_s);
}

Stats Machine::stats() {
  const std::lock_guard lock(clock_mutex_);
  return {.device_busy_s = clock_.busy_s(),
          .host_busy_s = host_busy_s_,
          .late_s = clock_.late_s(),
          .slept_s = clock_.slept_s(),
          .flops = flops_,
          .peak_bytes = peak_bytes_,
          .used_bytes = used_bytes_};
}

void Machine::reset_stats() {
  const std::lock_guard lock(clock_mutex_);
  clock_.reset_stats();
  host_busy_s_ = flops_ = 0;
  peak_bytes_ = used_bytes_.load();
}

}  // namespace pelago::emulator
