// Sees a chip that has become slower than its probe said (heat, a shared host, a failing link), or
// as fast again as it was. One slow step means nothing; ten in a row at 1.5 times the expected time
// do. What slows all ranks alike is the job or the machine, not a chip: ranks are compared with the
// lower median of the site.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>
#include <span>
#include <vector>

namespace pelago::train {

/// What is expected of a rank in each step.
struct ExpectedPace {
  double step_s = 0;      // of computing
  bool measured = false;  // from a probe; else its own first steps are the measure
  double factor = 1;      // that step_s already contains
  double usual = 0;       // of an unmeasured rank, from an earlier start; 0: to be learnt
};

class PaceWatch {
 public:
  static constexpr double kSlow = 1.5;
  static constexpr size_t kSteps = 10;

  explicit PaceWatch(std::vector<ExpectedPace> expected);
  /// compute_s: by rank. Returns the new factor of each rank if a rank has changed its pace.
  std::optional<std::vector<double>> on_step(std::span<const double> compute_s);
  /// Other shares: what is expected changes, what was learnt of unmeasured ranks stays.
  void expect(std::vector<ExpectedPace> expected);
  /// What was learnt of an unmeasured rank; 0: not yet.
  double usual(size_t rank) const;

 private:
  struct Rank {
    std::vector<double> first;  // ratios of the first steps of a rank that was not measured
    double usual = 1;           // their median
    std::deque<double> recent;  // ratios out of range, in a row
  };
  double ratio(size_t rank_idx, double compute_s);

  std::vector<ExpectedPace> expected_;
  std::vector<Rank> ranks_;
};

}  // namespace pelago::train
