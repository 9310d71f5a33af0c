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

thread_local bool is_worker = false;  // this thread has given the chip an operator

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
  faults_ = Faults();
  has_wrong_element_ = false;
  host_busy_s_ = flops_ = 0;
  peak_bytes_ = used_bytes_.load();
  return kOpened;
}

void Machine::close() {
  clear_faults();
  is_open_ = false;
}

void Machine::take_bytes(int64_t num_bytes) {
  const int64_t used_bytes = used_bytes_ += num_bytes;
  if (static_cast<double>(used_bytes) > settings_.memory_bytes) {
    used_bytes_ -= num_bytes;
    throw_out_of_memory(static_cast<double>(used_bytes - num_bytes),
                        static_cast<double>(num_bytes));
  }
  int64_t peak_bytes = peak_bytes_;
  while (used_bytes > peak_bytes && !peak_bytes_.compare_exchange_weak(peak_bytes, used_bytes)) {
  }
}

void Machine::throw_out_of_memory(double used_bytes, double needed_bytes) const {
  TORCH_CHECK_WITH(OutOfMemoryError,
                   false,
                   "emulated ",
                   settings_.chip,
                   " is out of memory: it has ",
                   settings_.memory_bytes / kMiB,
                   " MiB, ",
                   used_bytes / kMiB,
                   " MiB are in use and ",
                   needed_bytes / kMiB,
                   " MiB more are needed; use a smaller microbatch or model");
}

void Machine::check_dtype(c10::ScalarType dtype) const {
  TORCH_CHECK(dtype != c10::kBFloat16 || settings_.has_bf16 != 0,
              "emulated ",
              settings_.chip,
              " has no bf16; use fp16 or f32");
}

void Machine::begin_work() {
  bool is_out_of_memory = false;
  {
    const std::lock_guard lock(clock_mutex_);
    if (clock_.is_idle()) clock_.begin(steady_s());
    if (faults_.has_orders()) {
      faults_.on_operator(steady_s());
      is_out_of_memory = faults_.take_out_of_memory();
      has_wrong_element_ = faults_.has_wrong_element();
    }
    refuse_if_lost();
  }
  if (is_out_of_memory) {
    throw_out_of_memory(static_cast<double>(used_bytes_), settings_.memory_bytes);
  }
}

void Machine::end_work(const Cost& cost, double host_s) {
  const double compute_s = cost.flops_16bit / settings_.gemm_16bit_flop_s +
                           cost.flops_32bit / settings_.gemm_32bit_flop_s;
  const double memory_s = cost.bytes / settings_.memory_bytes_per_s;
  const double launch_s = cost.is_launched ? settings_.launch_s : 0;
  const double chip_s = std::max(compute_s, memory_s) + launch_s;
  is_worker = true;
  const std::lock_guard lock(clock_mutex_);
  clock_.charge(chip_s * settings_.slowdown * faults_.slow_factor());
  host_busy_s_ += host_s;
  flops_ += cost.flops_16bit + cost.flops_32bit;
}

std::optional<WrongElement> Machine::take_wrong_element() {
  if (!has_wrong_element_) return std::nullopt;
  const std::lock_guard lock(clock_mutex_);
  std::optional<WrongElement> element = faults_.take_wrong_element();
  has_wrong_element_ = faults_.has_wrong_element();
  return element;
}

void Machine::synchronize() {
  double wake_s = 0;
  {
    std::unique_lock lock(clock_mutex_);
    faults_.on_wait(steady_s());
    wait_while_stuck(lock);
    refuse_if_lost();
    const double now_s = steady_s();
    const double wait_s = clock_.synchronize(now_s);
    if (wait_s > 0) wake_s = now_s + wait_s;
  }
  if (wake_s > 0) sleep_until(wake_s);
}

double Machine::mark() {
  const std::lock_guard lock(clock_mutex_);
  return clock_.mark(steady_s());
}

double Machine::copy_s(int64_t num_bytes) const {
  const double chip_s = static_cast<double>(num_bytes) / settings_.host_link_bytes_per_s +
                        settings_.host_link_latency_s;
  return chip_s * settings_.slowdown * faults_.slow_factor();
}

double Machine::copy_to_host(double mark_s, int64_t num_bytes) {
  const std::lock_guard lock(clock_mutex_);
  refuse_if_lost();
  return clock_.copy_out(mark_s, copy_s(num_bytes));
}

double Machine::copy_to_chip(double arrived_s, int64_t num_bytes) {
  const std::lock_guard lock(clock_mutex_);
  refuse_if_lost();
  const double end_s = clock_.copy_in(arrived_s, copy_s(num_bytes));
  if (is_worker) clock_.mark(steady_s());  // a host that comes late with it may not hide behind it
  hold_up_later_work(end_s);
  return end_s;
}

void Machine::copy_to_chip_in_turn(int64_t num_bytes, double host_s) {
  const std::lock_guard lock(clock_mutex_);
  is_worker = true;
  host_busy_s_ += host_s;
  clock_.wait_for(clock_.copy_in(clock_.compute_end_s(), copy_s(num_bytes)));
}

void Machine::hold_up_later_work(double end_s) {
  is_worker ? clock_.wait_for(end_s) : clock_.wait_when_idle(end_s);
}

bool Machine::copy_is_done(double end_s) {
  const std::lock_guard lock(clock_mutex_);
  faults_.on_wait(steady_s());
  refuse_if_lost();
  return !faults_.is_stuck() && steady_s() >= end_s;
}

void Machine::wait_for_copy(double end_s) {
  const double begin_s = steady_s();
  {
    std::unique_lock lock(clock_mutex_);
    faults_.on_wait(begin_s);
    wait_while_stuck(lock);
    refuse_if_lost();
  }
  if (end_s <= begin_s) return;
  sleep_until(end_s);
  note_host_wait(begin_s, steady_s());
}

void Machine::note_host_wait(double begin_s, double end_s) {
  if (!is_worker) return;
  const std::lock_guard lock(clock_mutex_);
  clock_.note_host_wait(begin_s, end_s);
}

double Machine::link_begin(const double* ready_s) {
  const std::lock_guard lock(clock_mutex_);
  refuse_if_lost();
  return clock_.link_begin(ready_s != nullptr ? *ready_s : clock_.mark(steady_s()));
}

double Machine::charge_link(double begin_s, double seconds) {
  const std::lock_guard lock(clock_mutex_);
  const double end_s =
      clock_.charge_link(begin_s, seconds * settings_.slowdown * faults_.slow_factor());
  hold_up_later_work(end_s);
  return end_s;
}

void Machine::order_fault(const Fault& fault) {
  const std::lock_guard lock(clock_mutex_);
  faults_.order(fault, steady_s());
}

void Machine::clear_faults() {
  const std::lock_guard lock(clock_mutex_);
  faults_.clear();
  has_wrong_element_ = false;
  mended_.notify_all();
}

void Machine::refuse_if_lost() const {
  TORCH_CHECK(!faults_.is_lost(),
              "emulated ",
              settings_.chip,
              " does not answer any more: it was lost, as the fleet's faults ordered; restart the "
              "worker");
}

/// A kernel that never ends: whoever waits for the chip waits until the process is killed, or the
/// chip mended.
void Machine::wait_while_stuck(std::unique_lock<std::mutex>& lock) {
  mended_.wait(lock, [&] { return !faults_.is_stuck(); });
}

Stats Machine::stats() {
  const std::lock_guard lock(clock_mutex_);
  return {.device_busy_s = clock_.busy_s(),
          .host_busy_s = host_busy_s_,
          .late_s = clock_.late_s(),
          .slept_s = clock_.slept_s(),
          .flops = flops_,
          .peak_bytes = peak_bytes_,
          .used_bytes = used_bytes_,
          .faults_fired = faults_.num_fired()};
}

void Machine::reset_stats() {
  const std::lock_guard lock(clock_mutex_);
  clock_.reset_stats();
  faults_.reset_stats();
  host_busy_s_ = flops_ = 0;
  peak_bytes_ = used_bytes_.load();
}

}  // namespace pelago::emulator
