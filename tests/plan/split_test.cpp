#include "plan/planner/search/split.h"

#include <rapidcheck.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include "plan/fixtures.h"

namespace pelago::plan {
namespace {

StageLimits stage_of(double block_s, int64_t blocks_max, int64_t recomputed_blocks_max) {
  StageLimits stage;
  stage.block_s = block_s;
  stage.recomputed_block_s = 1.3 * block_s;
  stage.blocks_max = blocks_max;
  stage.recomputed_blocks_max = recomputed_blocks_max;
  return stage;
}

struct Best {
  double slowest_s = std::numeric_limits<double>::infinity();
  double sum_s = std::numeric_limits<double>::infinity();
};

/// By trying every cut.
Best best_of_all(const std::vector<StageLimits>& stages, int64_t num_blocks) {
  Best best;
  const std::function<void(size_t, int64_t, double, double)> try_from =
      [&](size_t stage, int64_t left, double slowest_s, double sum_s) {
        if (stage == stages.size()) {
          if (left == 0 && std::pair(slowest_s, sum_s) < std::pair(best.slowest_s, best.sum_s)) {
            best = {slowest_s, sum_s};
          }
          return;
        }
        for (int64_t blocks = 1; blocks <= std::min(left, stages[stage].most()); ++blocks) {
          const double seconds = stages[stage].time_s(blocks);
          try_from(stage + 1, left - blocks, std::max(slowest_s, seconds), sum_s + seconds);
        }
      };
  try_from(0, num_blocks, 0, 0);
  return best;
}

TEST_CASE("no cut of the blocks has a faster slowest stage, and of those none has less to do") {
  CHECK(rc::check([] {
    std::vector<StageLimits> stages(*rc::gen::inRange<size_t>(1, 5));
    for (StageLimits& stage : stages) {
      const auto plain = *rc::gen::inRange<int64_t>(0, 6);
      stage =
          stage_of(*rc::gen::inRange(1, 9) / 8.0, plain, plain + *rc::gen::inRange<int64_t>(0, 4));
      stage.fixed_s = *rc::gen::inRange(0, 9) / 8.0;
    }
    const auto num_blocks = *rc::gen::inRange<int64_t>(1, 13);
    const Best best = best_of_all(stages, num_blocks);
    const auto blocks = split_blocks(stages, num_blocks);
    RC_ASSERT(blocks.has_value() == (best.sum_s < 1e9));
    if (!blocks) return;
    RC_ASSERT(std::accumulate(blocks->begin(), blocks->end(), int64_t{0}) == num_blocks);
    double slowest_s = 0, sum_s = 0;
    for (size_t i = 0; i < stages.size(); ++i) {
      RC_ASSERT((*blocks)[i] >= 1);
      RC_ASSERT((*blocks)[i] <= stages[i].most());
      slowest_s = std::max(slowest_s, stages[i].time_s((*blocks)[i]));
      sum_s += stages[i].time_s((*blocks)[i]);
    }
    RC_ASSERT(std::abs(slowest_s - best.slowest_s) < 1e-9);
    RC_ASSERT(std::abs(sum_s - best.sum_s) < 1e-9);
  }));
}

TEST_CASE("a chip three times as fast takes three times as many blocks") {
  CHECK(split_blocks({stage_of(1, 99, 0), stage_of(3, 99, 0)}, 12) == std::vector<int64_t>{9, 3});
}

TEST_CASE("memory is a hard limit: the fast chip takes what it can hold, the slow one the rest") {
  CHECK(split_blocks({stage_of(1, 4, 4), stage_of(3, 99, 0)}, 12) == std::vector<int64_t>{4, 8});
  CHECK(!split_blocks({stage_of(1, 4, 4), stage_of(3, 7, 7)}, 12));
}

TEST_CASE("a stage recomputes only if no other stage takes the blocks as fast") {
  const auto blocks = split_blocks({stage_of(1, 4, 8), stage_of(0.5, 8, 8)}, 12);
  REQUIRE(blocks);
  CHECK(*blocks == std::vector<int64_t>{4, 8});
  CHECK(split_blocks({stage_of(1, 4, 8), stage_of(1, 4, 4)}, 12) == std::vector<int64_t>{8, 4});
}

TEST_CASE("fewer blocks than stages cannot be cut") {
  CHECK(!split_blocks({stage_of(1, 9, 9), stage_of(1, 9, 9)}, 1));
}

}  // namespace
}  // namespace pelago::plan
