// What no healthy training does. NaN and infinity show themselves, they reach the loss or the norm
// of the gradient; a value like 1e30 from a broken chip may be finite all the way (a norm divides
// it away, clipping scales it down) and still ruin the weights. Three bounds, each far above what
// training ever shows and far below what a flipped exponent makes:
//   residual stream   1e6. The largest activations known of trained models are 1e4 to 2e4
//                     (arXiv:2402.17762); fp16 ends at 65504.
//   gradient norm     1,000 times the median of the last good steps. In warm-up and in loss spikes
//                     norms move by factors of 10 to 100. Before there are 8 of them: 1e6 a token.
//   moments           m^2 <= bound * v holds for Adam whatever the gradients are (Cauchy-Schwarz);
//                     chips::adamw_step forgets moments that break it. Muon's m is bounded by the
//                     norm that clipping leaves; chips::muon_step forgets what is larger.
// A step that breaks a bound is skipped by all ranks alike.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <deque>
#include <vector>

namespace pelago::train {

inline constexpr double kHiddenMax = 1e6;

/// Fed with what all ranks agree on, so it decides the same everywhere.
class GradientWatch {
 public:
  static constexpr double kOverMedian = 1000;
  static constexpr double kUnknownMax = 1e6;  // while the median is not known
  static constexpr size_t kStepsMin = 8;
  static constexpr size_t kSteps = 32;
  /// After so many refusals in a row the gradient really is larger: start learning its size anew.
  static constexpr int kRefusalsMax = 8;

  /// norm: of a step's mean gradient. False for one that must not reach the weights.
  bool accepts(double norm) {
    if (!std::isfinite(norm)) return false;
    if (norm > limit()) {
      if (++num_refused_ >= kRefusalsMax) *this = {};
      return false;
    }
    num_refused_ = 0;
    norms_.push_back(norm);
    if (norms_.size() > kSteps) norms_.pop_front();
    return true;
  }

  double limit() const {
    if (norms_.size() < kStepsMin) return kUnknownMax;
    std::vector<double> sorted(norms_.begin(), norms_.end());
    const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
    std::nth_element(sorted.begin(), middle, sorted.end());
    // A model that has learnt its text by heart has norms near 0, and may meet a new sentence.
    return std::max(kOverMedian * *middle, 1.0);
  }

 private:
  std::deque<double> norms_;
  int num_refused_ = 0;
};

}  // namespace pelago::train
