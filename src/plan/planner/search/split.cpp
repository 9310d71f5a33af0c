#include "plan/planner/search/split.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace pelago::plan {

namespace {

int64_t whole_blocks(double seconds, double block_s, int64_t most) {
  if (!(seconds >= 0)) return 0;
  const double blocks = seconds / block_s;
  return blocks >= static_cast<double>(most) ? most : static_cast<int64_t>(blocks);
}

/// The most blocks that a stage can take within this time.
int64_t blocks_within(const StageLimits& stage, double seconds) {
  const double left_s = seconds - stage.fixed_s;
  int64_t blocks = whole_blocks(left_s, stage.block_s, stage.blocks_max);
  if (stage.recomputed_blocks_max > stage.blocks_max) {
    const int64_t recomputed =
        whole_blocks(left_s, stage.recomputed_block_s, stage.recomputed_blocks_max);
    if (recomputed > stage.blocks_max) blocks = recomputed;
  }
  // The quotient is rounded; what counts is time_s() as it is.
  while (blocks < stage.most() && stage.time_s(blocks + 1) <= seconds) ++blocks;
  while (blocks > 0 && stage.time_s(blocks) > seconds) --blocks;
  return blocks;
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

bool has_same_times(const StageLimits& one, const StageLimits& other) {
  return one.fixed_s == other.fixed_s && one.block_s == other.block_s &&
         one.recomputed_block_s == other.recomputed_block_s;
}

/// Every time that a stage can have, in order. Stages of one kind have the same times, but for how
/// many blocks fit, so each kind is listed once.
std::vector<double> possible_times(const std::vector<StageLimits>& stages, int64_t num_blocks) {
  struct Listed {
    StageLimits stage;
    int64_t whole_max = 0, recomputed_min = 0, recomputed_max = 0;
  };
  std::vector<Listed> kinds;
  for (const StageLimits& stage : stages) {
    auto found = std::find_if(kinds.begin(), kinds.end(), [&](const Listed& kind) {
      return has_same_times(kind.stage, stage);
    });
    if (found == kinds.end()) {
      kinds.push_back({stage, 0, num_blocks + 1, 0});
      found = kinds.end() - 1;
    }
    found->whole_max = std::max(found->whole_max, stage.blocks_max);
    if (stage.recomputed_blocks_max > stage.blocks_max) {
      found->recomputed_min = std::min(found->recomputed_min, stage.blocks_max + 1);
      found->recomputed_max = std::max(found->recomputed_max, stage.recomputed_blocks_max);
    }
  }
  std::vector<double> times;
  const auto add = [&](const StageLimits& stage, int64_t blocks, double block_s) {
    times.push_back(stage.fixed_s + static_cast<double>(blocks) * block_s);
  };
  for (const Listed& kind : kinds) {
    const int64_t whole = std::min(kind.whole_max, num_blocks);
    const int64_t recomputed = std::min(kind.recomputed_max, num_blocks);
    for (int64_t k = 1; k <= whole; ++k) add(kind.stage, k, kind.stage.block_s);
    for (int64_t k = kind.recomputed_min; k <= recomputed; ++k) {
      add(kind.stage, k, kind.stage.recomputed_block_s);
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
