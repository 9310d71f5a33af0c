#include "plan/planner/search/balance.h"

#include <rapidcheck.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "plan/fixtures.h"

namespace pelago::plan {
namespace {

/// A device that holds the whole model.
Pace pace(double sequence_s,
          double step_s = 0,
          double microbatch_s = 0,
          int64_t microbatch_max = 1) {
  std::vector<StageCosts> stages(1);
  stages[0].forward = {microbatch_s, sequence_s};
  return pace_of(stages, microbatch_max, step_s);
}

double step_of(const std::vector<Pace>& paces, const std::vector<int64_t>& sequences) {
  double step_s = 0;
  for (size_t i = 0; i < paces.size(); ++i) {
    step_s = std::max(step_s, paces[i].time_s(sequences[i]));
  }
  return step_s;
}

/// Pipelines of up to three stages, of which those of one are the most frequent.
Pace any_pace() {
  std::vector<StageCosts> stages(*rc::gen::element<size_t>(1, 1, 1, 2, 3));
  for (StageCosts& stage : stages) {
    stage.forward = {*rc::gen::inRange(0, 300) / 1e3, *rc::gen::inRange(1, 1000) / 1e3};
  }
  return pace_of(stages, *rc::gen::inRange<int64_t>(1, 9), *rc::gen::inRange(0, 300) / 1e3);
}

/// Paces that differ by up to a thousand, and a batch that no fleet of them outnumbers.
struct Case {
  std::vector<Pace> paces;
  BatchRange range;
};
Case any_case() {
  const auto num_devices = *rc::gen::inRange<size_t>(1, 13);
  Case any;
  for (size_t i = 0; i < num_devices; ++i) {
    any.paces.push_back(any_pace());
  }
  any.range.asked = *rc::gen::inRange<int64_t>(static_cast<int64_t>(num_devices), 200);
  return any;
}

TEST_CASE("shares add up to the batch, which lies in its range, and no device is left with none") {
  CHECK(rc::check([] {
    const Case any = any_case();
    const Balance balance = balance_batch(any.paces, any.range);
    const auto sum =
        std::accumulate(balance.sequences.begin(), balance.sequences.end(), int64_t{0});
    RC_ASSERT(sum == balance.batch);
    RC_ASSERT(balance.batch >= any.range.lo());
    RC_ASSERT(balance.batch <= any.range.hi());
    RC_ASSERT(*std::min_element(balance.sequences.begin(), balance.sequences.end()) >= 1);
    RC_ASSERT(balance.step_s == step_of(any.paces, balance.sequences));
  }));
}

TEST_CASE("no equal split of any allowed batch does more sequences a second") {
  CHECK(rc::check([] {
    const Case any = any_case();
    const Balance balance = balance_batch(any.paces, any.range);
    const auto num_devices = static_cast<int64_t>(any.paces.size());
    for (int64_t batch = std::max(any.range.lo(), num_devices); batch <= any.range.hi(); ++batch) {
      std::vector<int64_t> equal(any.paces.size(), batch / num_devices);
      for (int64_t i = 0; i < batch % num_devices; ++i) equal[static_cast<size_t>(i)] += 1;
      const double rate = static_cast<double>(batch) / step_of(any.paces, equal);
      RC_ASSERT(balance.sequences_a_second() >= rate * (1 - 1e-8));
    }
  }));
}

TEST_CASE("no split in proportion to speed, rounded, does more sequences a second") {
  CHECK(rc::check([] {
    const Case any = any_case();
    const Balance balance = balance_batch(any.paces, any.range);
    double speed_sum = 0;
    for (const Pace& one : any.paces) speed_sum += 1 / one.latency.sequence_s;
    std::vector<int64_t> rounded;
    for (const Pace& one : any.paces) {
      const double share =
          static_cast<double>(any.range.asked) / one.latency.sequence_s / speed_sum;
      rounded.push_back(std::max<int64_t>(1, std::llround(share)));
    }
    const auto batch = std::accumulate(rounded.begin(), rounded.end(), int64_t{0});
    RC_PRE(batch >= any.range.lo() && batch <= any.range.hi());
    const double rate = static_cast<double>(batch) / step_of(any.paces, rounded);
    RC_ASSERT(balance.sequences_a_second() >= rate * (1 - 1e-8));
  }));
}

/// The best rate of any cut of this batch, by trying them all.
double best_rate(const std::vector<Pace>& paces, int64_t batch) {
  double best = 0;
  std::vector<int64_t> cut(paces.size(), 1);
  const auto try_from = [&](auto&& self, size_t device, int64_t left) -> void {
    if (device + 1 == paces.size()) {
      cut[device] = left;
      best = std::max(best, static_cast<double>(batch) / step_of(paces, cut));
      return;
    }
    const auto after = static_cast<int64_t>(paces.size() - device - 1);
    for (cut[device] = 1; cut[device] <= left - after; ++cut[device]) {
      self(self, device + 1, left - cut[device]);
    }
  };
  try_from(try_from, 0, batch);
  return best;
}

TEST_CASE("the search finds what trying every cut of every allowed batch finds") {
  CHECK(rc::check([] {
    Case any = any_case();
    any.paces.resize(std::min<size_t>(any.paces.size(), 4));
    any.range.asked = *rc::gen::inRange<int64_t>(static_cast<int64_t>(any.paces.size()), 16);
    double best = 0;
    for (int64_t batch = any.range.lo(); batch <= any.range.hi(); ++batch) {
      if (batch < static_cast<int64_t>(any.paces.size())) continue;
      best = std::max(best, best_rate(any.paces, batch));
    }
    const Balance balance = balance_batch(any.paces, any.range);
    RC_ASSERT(std::abs(balance.sequences_a_second() / best - 1) < 1e-8);
  }));
}

TEST_CASE("devices of one pace keep the batch that was asked for") {
  const std::vector<Pace> paces(4, pace(0.1, 0));
  const Balance balance = balance_batch(paces, {.asked = 40});
  CHECK(balance.batch == 40);
  CHECK(balance.sequences == std::vector<int64_t>(4, 10));
}

TEST_CASE("a batch that cuts badly moves within a tenth to one that cuts evenly") {
  const std::vector<Pace> paces(4, pace(0.1, 0));
  CHECK(balance_batch(paces, {.asked = 41}).batch == 40);
  CHECK(balance_batch(paces, {.asked = 43}).batch == 44);
}

TEST_CASE("a batch below ten is kept, for a tenth of it is no sequence") {
  const std::vector<Pace> paces = {pace(0.1, 1.0)};
  CHECK(balance_batch(paces, {.asked = 9}).batch == 9);
}

TEST_CASE("a chip three times as fast takes three times as much") {
  const std::vector<Pace> paces = {pace(0.1, 0), pace(0.3, 0)};
  CHECK(balance_batch(paces, {.asked = 40}).sequences == std::vector<int64_t>{30, 10});
}

}  // namespace
}  // namespace pelago::plan
