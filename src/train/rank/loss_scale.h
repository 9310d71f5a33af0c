#pragma once

#include <algorithm>
#include <cstdint>

namespace pelago::train {

/// What losses are multiplied with before going backward where a chip trains in fp16, so that small
/// gradients do not fade to 0 (arXiv:1710.03740). Kept equal on all ranks, whatever their dtype.
/// Token sums already are as large as a mean scaled by the thousands of tokens of a microbatch, so
/// the scale starts low; it doubles after as many good steps as cost little when one overflows.
struct LossScale {
  static constexpr double kStart = 16;
  static constexpr double kMin = 1.0 / 1024;
  static constexpr double kMax = 65536;
  static constexpr int64_t kSteps = 200;

  double value = kStart;
  int64_t num_good_steps = 0;

  void adapt(bool skipped) {
    if (skipped) {
      value = std::max(value / 2, kMin);
      num_good_steps = 0;
    } else if (++num_good_steps == kSteps) {
      value = std::min(value * 2, kMax);
      num_good_steps = 0;
    }
  }
};

}  // namespace pelago::train
