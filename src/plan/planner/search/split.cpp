#include "plan/planner/search/split.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace pelago::plan {

namespace {

/// The most blocks that a stage can take within this time.
int64_t blocks_within(const StageLimits& stage, double seconds) {
  int64_t enough = 0;
  for (int64_t beyond = stage.most() + 1; beyond - enough > 1;) {
    const int64_t middle = enough + (beyond - enough) / 2;
    (stage.time_s(middle) <= seconds ? enough : beyond) = middle;
  }
  return enough;
}

bool can_hold(const std::vector<StageLimits>& stages, int64_t num_blocks, double seconds) {
  int64_t sum = 0;
  for (const StageLimits& stage : stages) {
    const int64_t blocks = blocks_within(stage, seconds);
    if (blocks == 0) return false;
    sum += blocks;
  }
  return sum >= num_blocks;
}

/// Every time that a stage can have, in order.
std::vector<double> possible_times(const std::vector<StageLimits>& stages, int64_t num_blocks) {
  std::vector<double> times;
  for (const StageLimits& stage : stages) {
    for (int64_t blocks = 1; blocks <= std::min(stage.most(), num_blocks); ++blocks) {
      times.push_back(stage.time_s(blocks));
    }
  }
  std::sort(times.begin(), times.end());
  times.erase(std::unique(times.begin(), times.end()), times.end());
  return times;
}

/// Takes `surplus` blocks away where that saves most.
void remove_surplus(const std::vector<StageLimits>& stages,
                    int64_t surplus,
                    std::vector<int64_t>& blocks) {
  const size_t num_stages = stages.size();
  const auto width = static_cast<size_t>(surplus + 1);
  constexpr double kNever = std::numeric_limits<double>::infinity();
  // least[s][r]: the least sum of times of stages before s that take r blocks less than they could.
  std::vector<double> least(width, kNever);
  least[0] = 0;
  std::vector<std::vector<int64_t>> removed(num_stages, std::vector<int64_t>(width, 0));
  for (size_t stage = 0; stage < num_stages; ++stage) {
    std::vector<double> next(width, kNever);
    for (int64_t before = 0; before <= surplus; ++before) {
      const double sum = least[static_cast<size_t>(before)];
      if (sum == kNever) continue;
      const int64_t most = std::min(surplus - before, blocks[stage] - 1);
      for (int64_t less = 0; less <= most; ++less) {
        const auto at = static_cast<size_t>(before + less);
        const double seconds = sum + stages[stage].time_s(blocks[stage] - less);
        if (seconds >= next[at]) continue;
        next[at] = seconds;
        removed[stage][at] = less;
      }
    }
    least = std::move(next);
  }
  int64_t left = surplus;
  for (size_t stage = num_stages; stage-- > 0;) {
    const int64_t less = removed[stage][static_cast<size_t>(left)];
    blocks[stage] -= less;
    left -= less;
  }
}

}  // namespace

std::optional<std::vector<int64_t>> split_blocks(const std::vector<StageLimits>& stages,
                                                 int64_t num_blocks) {
  if (static_cast<int64_t>(stages.size()) > num_blocks) return std::nullopt;
  const std::vector<double> times = possible_times(stages, num_blocks);
  if (times.empty() || !can_hold(stages, num_blocks, times.back())) return std::nullopt;
  const auto slowest = std::partition_point(times.begin(), times.end(), [&](double seconds) {
    return !can_hold(stages, num_blocks, seconds);
  });
  std::vector<int64_t> blocks;
  for (const StageLimits& stage : stages) blocks.push_back(blocks_within(stage, *slowest));
  const int64_t surplus = std::accumulate(blocks.begin(), blocks.end(), int64_t{0}) - num_blocks;
  remove_surplus(stages, surplus, blocks);
  return blocks;
}

}  // namespace pelago::plan
