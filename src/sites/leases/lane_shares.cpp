#include "sites/leases/lane_shares.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace pelago::sites {

namespace {

int64_t total(const std::vector<int64_t>& sequences) {
  return std::accumulate(sequences.begin(), sequences.end(), int64_t{0});
}

}  // namespace

Status LaneShares::add(const ShareChange& change) {
  const std::vector<int64_t>& before = newest().sequences;
  // Each number first: a sum of numbers from outside may overflow.
  const bool is_possible =
      change.data_step > newest().data_step && change.sequences.size() == before.size() &&
      std::all_of(change.sequences.begin(), change.sequences.end(), [&](int64_t sequences) {
        return sequences >= 0 && sequences <= total(before);
      });
  if (!is_possible || total(change.sequences) != total(before)) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("shares of {} lanes from data step {} on do not follow on those of {} "
                             "lanes from {} on",
                             change.sequences.size(),
                             change.data_step,
                             before.size(),
                             newest().data_step)};
  }
  changes_.push_back(change);
  return ok();
}

void LaneShares::forget_from(int64_t data_step) {
  while (changes_.size() > 1 && newest().data_step >= data_step) changes_.pop_back();
}

const ShareChange& LaneShares::at(int64_t data_step) const {
  size_t idx = changes_.size() - 1;
  while (idx > 0 && changes_[idx].data_step > data_step) --idx;
  return changes_[idx];
}

StepRange LaneShares::steps_of(size_t change_idx) const {
  const bool is_last = change_idx + 1 == changes_.size();
  return {
      .begin = changes_[change_idx].data_step,
      .end = is_last ? std::numeric_limits<int64_t>::max() : changes_[change_idx + 1].data_step};
}

int64_t LaneShares::count(size_t lane, StepRange range) const {
  int64_t sum = 0;
  for (size_t idx = 0; idx < changes_.size(); ++idx) {
    const StepRange held = steps_of(idx);
    const int64_t num_steps = std::min(held.end, range.end) - std::max(held.begin, range.begin);
    sum += std::max<int64_t>(num_steps, 0) * changes_[idx].sequences[lane];
  }
  return sum;
}

int64_t LaneShares::count(size_t lane, const RangeSet& steps) const {
  int64_t sum = 0;
  for (size_t idx = 0; idx < changes_.size(); ++idx) {
    sum += steps.count_in(steps_of(idx)) * changes_[idx].sequences[lane];
  }
  return sum;
}

}  // namespace pelago::sites
