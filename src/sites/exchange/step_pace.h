// How long a site's steps take: the median over the last round, so that neither a first step nor a
// checkpoint counts. Begun anew when the site's share of the batch changes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace pelago::sites {

class StepPace {
 public:
  /// steps_max: of a round.
  explicit StepPace(int64_t steps_max)
      : steps_max_(static_cast<size_t>(std::max<int64_t>(steps_max, kStepsMin))) {}

  /// share: sequences of this step. step_s: without waiting for the line.
  void note(int64_t share, double step_s) {
    if (share != share_) steps_us_.clear();
    share_ = share;
    steps_us_.push_back(std::max<int64_t>(1, static_cast<int64_t>(step_s * 1e6)));
    if (steps_us_.size() > steps_max_) steps_us_.pop_front();
  }
  /// 0: too few steps with this share.
  int64_t median_us() const {
    if (steps_us_.size() < kStepsMin) return 0;
    std::vector<int64_t> sorted(steps_us_.begin(), steps_us_.end());
    const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
    std::nth_element(sorted.begin(), middle, sorted.end());
    return *middle;
  }

 private:
  static constexpr size_t kStepsMin = 3;
  size_t steps_max_;
  int64_t share_ = 0;
  std::deque<int64_t> steps_us_;
};

}  // namespace pelago::sites
