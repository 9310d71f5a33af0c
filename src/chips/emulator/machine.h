// The one emulated chip of this process: what memory is in use, which dtypes it has, what time it
// would be on the real chip, and what was ordered to go wrong. libtorch's allocators, guards and
// kernels are process-wide, so this is too.
//
// Threads that give the chip work are told from those that only move bytes (reductions, messages):
// a thread counts as a worker from its first operator on. Only a worker is held up by a copy to the
// chip or found late; what another thread copies in is waited for at the next synchronisation.
#pragma once

#include <c10/core/ScalarType.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>

#include "chips/emulator/abi.h"
#include "chips/emulator/faults.h"
#include "chips/emulator/paced_clock.h"

namespace pelago::emulator {

/// What one operator asks of the chip.
struct Cost {
  double flops_16bit = 0;   // matmul arithmetic in bf16 or fp16
  double flops_32bit = 0;   // matmul arithmetic in f32
  double bytes = 0;         // read and written in the chip's memory
  bool is_launched = true;  // false for a view, which no chip runs anything for
};

class Machine {
 public:
  int32_t open(const Settings& settings);
  void close();

  /// Throws c10::OutOfMemoryError naming chip, size, use and need.
  void take_bytes(int64_t num_bytes);
  void give_back_bytes(int64_t num_bytes) { used_bytes_ -= num_bytes; }

  /// Throws c10::Error for a dtype that the chip does not have.
  void check_dtype(c10::ScalarType dtype) const;

  /// Brackets the host's work for one operator; host_s is its processor time. begin_work() throws
  /// what the faults on order say.
  void begin_work();
  void end_work(const Cost& cost, double host_s);
  /// The wrong element that a matmul's result is to have, if one is due.
  std::optional<WrongElement> take_wrong_element();

  /// Sleeps until the chip would be done; for ever if it is stuck.
  void synchronize();
  double mark();

  /// Each returns the end of a copy that the caller makes itself.
  double copy_to_host(double mark_s, int64_t num_bytes);
  double copy_to_chip(double arrived_s, int64_t num_bytes);
  /// From pageable memory, in the order of the operators.
  void copy_to_chip_in_turn(int64_t num_bytes, double host_s);
  bool copy_is_done(double end_s);
  void wait_for_copy(double end_s);
  void note_host_wait(double begin_s, double end_s);

  double link_begin(const double* ready_s);
  double charge_link(double begin_s, double seconds);

  void order_fault(const Fault& fault);
  void clear_faults();

  Stats stats();
  void reset_stats();

 private:
  double copy_s(int64_t num_bytes) const;
  void hold_up_later_work(double end_s);
  void refuse_if_lost() const;
  void wait_while_stuck(std::unique_lock<std::mutex>& lock);
  [[noreturn]] void throw_out_of_memory(double used_bytes, double needed_bytes) const;

  Settings settings_;
  std::atomic<bool> is_open_{false};
  std::atomic<int64_t> used_bytes_{0};
  std::atomic<int64_t> peak_bytes_{0};
  std::atomic<bool> has_wrong_element_{false};
  std::mutex clock_mutex_;  // guards what follows
  std::condition_variable mended_;
  PacedClock clock_;
  Faults faults_;
  double host_busy_s_ = 0;
  double flops_ = 0;
};

Machine& machine();

}  // namespace pelago::emulator
