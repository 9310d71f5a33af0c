#include "plan/planner/search/pace.h"

#include <algorithm>
#include <limits>

namespace pelago::plan {

namespace {

bool is_above(const LinearCost& a, const LinearCost& b) {
  return a.fixed_s >= b.fixed_s && a.sequence_s >= b.sequence_s;
}

/// Keeps what may be the largest somewhere.
void add_period(const LinearCost& period, std::vector<LinearCost>& periods) {
  for (const LinearCost& other : periods) {
    if (is_above(other, period)) return;
  }
  std::erase_if(periods, [&](const LinearCost& other) { return is_above(period, other); });
  periods.push_back(period);
}

struct BestCut {
  double seconds = std::numeric_limits<double>::infinity();
  int64_t microbatch = 1;
};

BestCut best_cut(const Pace& pace, int64_t sequences) {
  BestCut best;
  const int64_t largest = std::min(pace.microbatch_max, sequences);
  if (pace.is_exact) return {pace.time_s(sequences, largest), largest};
  // Sizes that cut the share into equally many microbatches differ only for the worse.
  for (int64_t size = largest; size >= 1;) {
    const int64_t count = (sequences + size - 1) / size;
    const int64_t even = (sequences + count - 1) / count;
    const double seconds = pace.time_s(sequences, even);
    if (seconds < best.seconds) best = {seconds, even};
    // A single stage gains nothing by more microbatches.
    if (pace.periods.size() == 1 && is_above(pace.periods.front(), pace.latency)) break;
    size = even - 1;
  }
  return best;
}

}  // namespace

double Pace::period_s(double sequences) const {
  double longest_s = 0;
  for (const LinearCost& period : periods) longest_s = std::max(longest_s, period.at(sequences));
  return longest_s;
}

double Pace::time_s(int64_t sequences, int64_t microbatch) const {
  const int64_t whole = sequences / microbatch;
  const int64_t rest = sequences % microbatch;
  const auto first = static_cast<double>(std::min(sequences, microbatch));
  double seconds = latency.at(first) + step_s;
  if (whole > 1) seconds += static_cast<double>(whole - 1) * period_s(first);
  if (whole > 0 && rest > 0) seconds += period_s(static_cast<double>(rest));
  return seconds;
}

double Pace::time_s(int64_t sequences) const {
  const auto num_played = static_cast<int64_t>(played.size());
  if (sequences <= num_played) return played[static_cast<size_t>(sequences - 1)].seconds + step_s;
  const double estimate_s = best_cut(*this, sequences).seconds;
  return played.empty() ? estimate_s : std::max(estimate_s, played.back().seconds + step_s);
}

int64_t Pace::best_microbatch(int64_t sequences) const {
  const auto num_played = static_cast<int64_t>(played.size());
  if (sequences <= num_played) return played[static_cast<size_t>(sequences - 1)].microbatch;
  return best_cut(*this, sequences).microbatch;
}

Pace pace_of(const std::vector<StageCosts>& stages, int64_t microbatch_max, double step_s) {
  Pace pace;
  pace.microbatch_max = microbatch_max;
  pace.step_s = step_s;
  // From the last stage to the first: what one microbatch needs from here on and back.
  LinearCost round_trip;
  double num_under_way = 0;
  for (size_t i = stages.size(); i-- > 0;) {
    LinearCost work = stages[i].forward;
    work += stages[i].backward;
    if (i + 1 < stages.size()) {
      LinearCost way = stages[i].copy;
      way += stages[i].message;
      way += stages[i + 1].copy;
      round_trip += way.times(2);
      add_period(stages[i].copy.times(i > 0 ? 2 : 1), pace.periods);
    }
    round_trip += work;
    num_under_way += 1;
    add_period(work, pace.periods);
    add_period(round_trip.times(1 / num_under_way), pace.periods);
  }
  pace.latency = round_trip;
  return pace;
}

}  // namespace pelago::plan
