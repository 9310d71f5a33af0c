#include "plan/planner/search/balance.h"

#include <algorithm>
#include <cstdlib>
#include <queue>
#include <utility>

#include "base/error.h"

namespace pelago::plan {

namespace {

// Two totals whose rates differ by less than this are equals: the sums of times are rounded, and a
// batch should not move for the last bit of a double.
constexpr double kSameRate = 1e-9;

bool is_better(int64_t batch, double step_s, const Balance& best, int64_t asked) {
  const double rate = static_cast<double>(batch) / step_s;
  const double best_rate = best.sequences_a_second();
  if (rate > best_rate * (1 + kSameRate)) return true;
  return rate >= best_rate * (1 - kSameRate) &&
         std::abs(batch - asked) < std::abs(best.batch - asked);
}

}  // namespace

Balance balance_batch(std::span<const Pace> pipelines, const BatchRange& range) {
  const auto num_pipelines = static_cast<int64_t>(pipelines.size());
  PELAGO_ASSERT(num_pipelines > 0 && num_pipelines <= range.hi(),
                "the planner refuses a batch that is smaller than the number of pipelines");
  using Offer = std::pair<double, size_t>;  // end with one more sequence, pipeline
  std::priority_queue<Offer, std::vector<Offer>, std::greater<>> offers;
  double step_s = 0;
  for (size_t i = 0; i < pipelines.size(); ++i) {
    step_s = std::max(step_s, pipelines[i].time_s(1));
    offers.emplace(pipelines[i].time_s(2), i);
  }
  Balance best;
  if (num_pipelines >= range.lo())
    best = {.sequences = {}, .batch = num_pipelines, .step_s = step_s};
  std::vector<int64_t> sequences(pipelines.size(), 1);
  std::vector<size_t> takers;  // who took sequence num_pipelines + i
  for (int64_t batch = num_pipelines + 1; batch <= range.hi(); ++batch) {
    const auto [end_s, taker] = offers.top();
    offers.pop();
    step_s = std::max(step_s, end_s);
    takers.push_back(taker);
    sequences[taker] += 1;
    offers.emplace(pipelines[taker].time_s(sequences[taker] + 1), taker);
    if (batch < range.lo()) continue;
    if (best.batch == 0 || is_better(batch, step_s, best, range.asked)) {
      best.batch = batch;
      best.step_s = step_s;
    }
  }
  best.sequences.assign(pipelines.size(), 1);
  for (int64_t i = 0; i < best.batch - num_pipelines; ++i) {
    best.sequences[takers[static_cast<size_t>(i)]] += 1;
  }
  return best;
}

}  // namespace pelago::plan
