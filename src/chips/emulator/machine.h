// The one emulated chip of this process: what memory is in use, which dtypes it has, and what time
// it would be on the real chip. libtorch's allocators, guards and kernels are process-wide, so this
// is too.
#pragma once

#include <c10/core/ScalarType.h>

#include <atomic>
#include <cstdint>
#include <mutex>

#include "chips/emulator/abi.h"
#include "chips/emulator/paced_clock.h"

namespace pelago::emulator {

/// What one operator asks of the chip.
struct Cost {
  double flops_16bit = 0;   // matmul arithmetic in bf16 or fp16
  double flops_32bit = 0;   // matmul arithmetic in f32
  double bytes = 0;         // read and written in the chip's memory
  double link_bytes = 0;    // from or to the host
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

  /// Brackets the host's work for one operator; host_s is its processor time.
  void begin_work();
  void end_work(const Cost& cost, double host_s);

  /// Sleeps until the chip would be done.
  void synchronize();

  Stats stats();
  void reset_stats();

 private:
  Settings settings_;
  std::atomic<bool> is_open_{false};
  std::atomic<int64_t> used_bytes_{0};
  std::atomic<int64_t> peak_bytes_{0};
  std::mutex clock_mutex_;  // guards clock_, host_busy_s_ and flops_
  PacedClock clock_;
  double host_busy_s_ = 0;
  double flops_ = 0;
};

Machine& machine();

}  // namespace pelago::emulator
