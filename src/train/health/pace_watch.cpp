#include "train/health/pace_watch.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace pelago::train {

namespace {

double lower_median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

PaceWatch::PaceWatch(std::vector<ExpectedPace> expected)
    : expected_(std::move(expected)), ranks_(expected_.size()) {
  for (size_t i = 0; i < ranks_.size(); ++i) {
    if (expected_[i].usual <= 0) continue;
    ranks_[i].usual = expected_[i].usual;
    ranks_[i].first.resize(kSteps);
  }
}

double PaceWatch::usual(size_t rank) const {
  return ranks_[rank].first.size() == kSteps ? ranks_[rank].usual : 0;
}

void PaceWatch::expect(std::vector<ExpectedPace> expected) {
  expected_ = std::move(expected);
  for (Rank& rank : ranks_) rank.recent.clear();
}

/// Of the time taken to the time expected; 1 while the rank's own first steps are still the
/// measure.
double PaceWatch::ratio(size_t rank_idx, double compute_s) {
  const ExpectedPace& expected = expected_[rank_idx];
  Rank& rank = ranks_[rank_idx];
  if (!(expected.step_s > 0)) return 1;
  const double ratio = compute_s / expected.step_s;
  if (expected.measured || rank.first.size() == kSteps) return ratio / rank.usual;
  rank.first.push_back(ratio);
  if (rank.first.size() == kSteps) rank.usual = std::max(lower_median(rank.first), 1e-9);
  return 1;
}

std::optional<std::vector<double>> PaceWatch::on_step(std::span<const double> compute_s) {
  std::vector<double> ratios;
  for (size_t i = 0; i < ranks_.size(); ++i) ratios.push_back(ratio(i, compute_s[i]));
  const double site = std::max(1.0, lower_median(ratios));
  bool has_changed = false;
  for (size_t i = 0; i < ranks_.size(); ++i) {
    const double own = ratios[i] / site;
    const bool is_slow = own > kSlow;
    const bool is_fast_again = expected_[i].factor > 1 && own * kSlow < 1;
    std::deque<double>& recent = ranks_[i].recent;
    if (!is_slow && !is_fast_again) {
      recent.clear();
      continue;
    }
    if (!recent.empty() && (recent.back() > 1) != is_slow) recent.clear();
    recent.push_back(own);
    has_changed |= recent.size() >= kSteps;
  }
  if (!has_changed) return std::nullopt;
  std::vector<double> factors;
  for (size_t i = 0; i < ranks_.size(); ++i) {
    double factor = expected_[i].factor;
    std::deque<double>& recent = ranks_[i].recent;
    if (recent.size() >= kSteps) {
      factor *= lower_median({recent.begin(), recent.end()});
      constexpr double kAsBefore = 1.1;
      if (factor < kAsBefore) factor = 1;
      recent.clear();
    }
    factors.push_back(factor);
  }
  return factors;
}

}  // namespace pelago::train
