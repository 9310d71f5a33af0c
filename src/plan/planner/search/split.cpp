#include "plan/planner/search/split.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

namespace pelago::plan {

namespace {

int64_t whole_blocks(double seconds, double block_s, int64_t most) {
  if (!(seconds >= 0)) return 0;
  if (block_s <= 0) return most;
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

/// Neighbouring stages with the same limits: pipelines have many of few kinds.
struct AlikeStages {
  StageLimits stage;
  int64_t count = 1;
};

bool is_alike(const StageLimits& one, const StageLimits& other) {
  return one.fixed_s == other.fixed_s && one.block_s == other.block_s &&
         one.recomputed_block_s == other.recomputed_block_s && one.blocks_max == other.blocks_max &&
         one.recomputed_blocks_max == other.recomputed_blocks_max;
}

std::vector<AlikeStages> join_alike(const std::vector<StageLimits>& stages) {
  std::vector<AlikeStages> alike;
  for (const StageLimits& stage : stages) {
    if (!alike.empty() && is_alike(alike.back().stage, stage)) {
      alike.back().count += 1;
    } else {
      alike.push_back({stage, 1});
    }
  }
  return alike;
}

/// What the stages take within this time, each; false if that is not all blocks, or one takes none.
bool can_hold(const std::vector<AlikeStages>& stages,
              int64_t num_blocks,
              double seconds,
              std::vector<int64_t>& blocks) {
  int64_t sum = 0;
  bool is_idle = false;
  for (size_t i = 0; i < stages.size(); ++i) {
    blocks[i] = blocks_within(stages[i].stage, seconds);
    is_idle = is_idle || blocks[i] == 0;
    sum += stages[i].count * blocks[i];
  }
  return !is_idle && sum >= num_blocks;
}

/// The time in which all stages, keeping everything, would take the blocks if these could be cut
/// anywhere; and the longest block's. Only a place to look at: memory may not allow it.
std::pair<double, double> even_time(const std::vector<AlikeStages>& stages, int64_t num_blocks) {
  double longest_s = 0, rate = 0, lost = 0;
  for (const AlikeStages& alike : stages) {
    if (alike.stage.block_s <= 0) return {0, 0};
    const double blocks_a_second = static_cast<double>(alike.count) / alike.stage.block_s;
    rate += blocks_a_second;
    lost += blocks_a_second * alike.stage.fixed_s;
    longest_s = std::max(longest_s, alike.stage.block_s);
  }
  return {(static_cast<double>(num_blocks) + lost) / rate, longest_s};
}

/// The least time of the slowest stage; none if the stages cannot hold so many blocks. Bisected
/// until only one kind of stage has one block more at the longer time than at the shorter: that
/// block makes the difference, so what they take then is what they take at the least time.
std::optional<double> least_time(const std::vector<AlikeStages>& stages, int64_t num_blocks) {
  double enough_s = 0;
  for (const AlikeStages& alike : stages) {
    const int64_t most = std::min(alike.stage.most(), num_blocks);
    enough_s = std::max(enough_s, alike.stage.time_s(most));
  }
  std::vector<int64_t> enough(stages.size()), too_few(stages.size(), 0), middle(stages.size());
  if (!can_hold(stages, num_blocks, enough_s, enough)) return std::nullopt;
  const auto num_between = [&] {
    int64_t sum = 0;
    for (size_t i = 0; i < stages.size(); ++i) sum += enough[i] - too_few[i];
    return sum;
  };
  constexpr double kLastBits = 1e-12;
  double short_s = 0;
  const auto probe = [&](double middle_s) {
    const bool is_enough = can_hold(stages, num_blocks, middle_s, middle);
    (is_enough ? enough_s : short_s) = middle_s;
    std::swap(is_enough ? enough : too_few, middle);
  };
  // Near the time in which parts of blocks would do; each stage then lacks less than one block.
  const auto [even_s, block_s] = even_time(stages, num_blocks);
  for (const double near_s : {even_s, even_s + block_s}) {
    if (near_s > short_s && near_s < enough_s) probe(near_s);
  }
  while (enough_s - short_s > kLastBits * enough_s && num_between() > 1) {
    probe((short_s + enough_s) / 2);
  }
  double slowest_s = 0;
  for (size_t i = 0; i < stages.size(); ++i) {
    slowest_s = std::max(slowest_s, stages[i].stage.time_s(enough[i]));
  }
  return slowest_s;
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

/// As remove_surplus(), where no stage recomputes, so that each block of a stage saves the same:
/// from the dearest stage; of equally dear ones from the longest, so that they stay even, of equals
/// the last.
void remove_dearest(const std::vector<StageLimits>& stages,
                    int64_t surplus,
                    std::vector<int64_t>& blocks) {
  for (; surplus > 0; --surplus) {
    size_t dearest = stages.size();
    for (size_t i = 0; i < stages.size(); ++i) {
      if (blocks[i] < 2) continue;
      const StageLimits& stage = stages[i];
      if (dearest < stages.size()) {
        const StageLimits& other = stages[dearest];
        if (stage.block_s < other.block_s) continue;
        if (stage.block_s == other.block_s &&
            stage.time_s(blocks[i]) < other.time_s(blocks[dearest])) {
          continue;
        }
      }
      dearest = i;
    }
    blocks[dearest] -= 1;
  }
}

/// Takes `surplus` blocks away where that saves most.
void remove_surplus(const std::vector<StageLimits>& stages,
                    int64_t surplus,
                    std::vector<int64_t>& blocks) {
  const size_t num_stages = stages.size();
  bool recomputes = false;
  for (size_t i = 0; i < num_stages; ++i) {
    recomputes = recomputes || blocks[i] > stages[i].blocks_max;
  }
  if (!recomputes) return remove_dearest(stages, surplus, blocks);
  const auto width = static_cast<size_t>(surplus + 1);
  constexpr double kNever = std::numeric_limits<double>::infinity();
  // least[s][r]: the least sum of times of stages before s that take r blocks less than they could.
  std::vector<double> least(width, kNever);
  least[0] = 0;
  std::vector<int64_t> removed(num_stages * width, 0);  // by stage and r
  std::vector<double> next, time_s;
  for (size_t stage = 0; stage < num_stages; ++stage) {
    next.assign(width, kNever);
    time_s.clear();  // by how many blocks less it takes
    for (int64_t less = 0; less <= std::min(surplus, blocks[stage] - 1); ++less) {
      time_s.push_back(stages[stage].time_s(blocks[stage] - less));
    }
    for (int64_t before = 0; before <= surplus; ++before) {
      const double sum = least[static_cast<size_t>(before)];
      if (sum == kNever) continue;
      const int64_t most = std::min(surplus - before, blocks[stage] - 1);
      for (int64_t less = 0; less <= most; ++less) {
        const auto at = static_cast<size_t>(before + less);
        const double seconds = sum + time_s[static_cast<size_t>(less)];
        if (seconds >= next[at]) continue;
        next[at] = seconds;
        removed[stage * width + at] = less;
      }
    }
    std::swap(least, next);
  }
  int64_t left = surplus;
  for (size_t stage = num_stages; stage-- > 0;) {
    const int64_t less = removed[stage * width + static_cast<size_t>(left)];
    blocks[stage] -= less;
    left -= less;
  }
}

/// Every cut into these stages, unless there are more than `most` of them.
bool list_cuts(const std::vector<StageLimits>& stages,
               int64_t num_blocks,
               size_t most,
               std::vector<int64_t>& cut,
               std::vector<std::vector<int64_t>>& cuts) {
  if (cut.size() == stages.size()) {
    if (num_blocks == 0) cuts.push_back(cut);
    return cuts.size() <= most;
  }
  const StageLimits& stage = stages[cut.size()];
  const auto behind = static_cast<int64_t>(stages.size() - cut.size() - 1);
  for (int64_t blocks = behind == 0 ? num_blocks : 1; blocks <= num_blocks - behind; ++blocks) {
    if (blocks > stage.most()) break;
    cut.push_back(blocks);
    const bool go_on = list_cuts(stages, num_blocks - blocks, most, cut, cuts);
    cut.pop_back();
    if (!go_on) return false;
  }
  return true;
}

}  // namespace

std::optional<std::vector<int64_t>> split_blocks(const std::vector<StageLimits>& stages,
                                                 int64_t num_blocks) {
  auto cuts = split_variants(stages, num_blocks, 1);
  if (cuts.empty()) return std::nullopt;
  return std::move(cuts.front());
}

std::vector<std::vector<int64_t>> split_variants(const std::vector<StageLimits>& stages,
                                                 int64_t num_blocks,
                                                 size_t most) {
  std::vector<std::vector<int64_t>> cuts;
  if (static_cast<int64_t>(stages.size()) > num_blocks) return cuts;
  if (most > 1) {
    std::vector<int64_t> cut;
    if (list_cuts(stages, num_blocks, most, cut, cuts)) return cuts;
    cuts.clear();
    constexpr size_t kTradesMax = 5;
    most = std::min(most, kTradesMax);
  }
  const auto least_s = least_time(join_alike(stages), num_blocks);
  if (!least_s) return cuts;
  std::vector<double> slowest_s = {*least_s};
  if (most > 1) {
    // Evenly over all times that are long enough, the last included.
    const std::vector<double> times = possible_times(stages, num_blocks);
    const auto first = std::upper_bound(times.begin(), times.end(), *least_s);
    const auto num_later = static_cast<size_t>(times.end() - first);
    const size_t num_taken = std::min(most - 1, num_later);
    for (size_t i = 1; i <= num_taken; ++i) {
      slowest_s.push_back(first[static_cast<std::ptrdiff_t>(i * num_later / num_taken - 1)]);
    }
  }
  for (const double seconds : slowest_s) {
    std::vector<int64_t> blocks;
    for (const StageLimits& stage : stages) blocks.push_back(blocks_within(stage, seconds));
    const int64_t surplus = std::accumulate(blocks.begin(), blocks.end(), int64_t{0}) - num_blocks;
    if (surplus > 0) remove_surplus(stages, surplus, blocks);
    if (std::find(cuts.begin(), cuts.end(), blocks) == cuts.end()) {
      cuts.push_back(std::move(blocks));
    }
  }
  return cuts;
}

}  // namespace pelago::plan
