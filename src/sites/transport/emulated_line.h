// When a frame would be at the other end of a long line: it waits until the line has taken the
// frames before it, is sent at the line's rate, and travels half a round trip. Frames travel behind
// one another, so the delay costs each frame once and the line none of its rate. Pure arithmetic;
// the sender's thread does the waiting.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pelago::sites {

struct LineOptions {
  double bandwidth_mbit_s = 1000;  // this direction
  double rtt_ms = 10;
};

class EmulatedLine {
 public:
  explicit EmulatedLine(const LineOptions& options)
      : bytes_per_s_(options.bandwidth_mbit_s * 1e6 / 8), delay_s_(options.rtt_ms * 1e-3 / 2) {}

  /// The time at which a frame given to the line at now_s has arrived whole.
  double arrival_s(double now_s, int64_t num_bytes) {
    free_s_ = std::max(free_s_, now_s) + static_cast<double>(num_bytes) / bytes_per_s_;
    return free_s_ + delay_s_;
  }

 private:
  double bytes_per_s_;
  double delay_s_;
  double free_s_ = 0;  // when the line has taken everything given to it so far
};

}  // namespace pelago::sites
