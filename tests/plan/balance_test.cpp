#include "plan/planner/balance.h"

#include <rapidcheck.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "plan/fixtures.h"

namespace pelago::plan {
namespace {

double step_of(const std::vector<Pace>& paces, const std::vector<int64_t>& sequences) {
  double step_s = 0;
  for (size_t i = 0; i < paces.size(); ++i) {
    step_s = std::max(step_s, paces[i].time_s(sequences[i]));
  }
  return step_s;
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
    any.paces.push_back({.sequence_s = *rc::gen::inRange(1, 1000) / 1e3,
                         .step_s = *rc::gen::inRange(0, 300) / 1e3,
                         .microbatch_s = *rc::gen::inRange(0, 300) / 1e3,
                         .microbatch_max = *rc::gen::inRange<int64_t>(1, 9)});
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
    for (const Pace& pace : any.paces) speed_sum += 1 / pace.sequence_s;
    std::vector<int64_t> rounded;
    for (const Pace& pace : any.paces) {
      const double share = static_cast<double>(any.range.asked) / pace.sequence_s / speed_sum;
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
  const std::vector<Pace> paces(4, Pace{.sequence_s = 0.1, .step_s = 0});
  const Balance balance = balance_batch(paces, {.asked = 40});
  CHECK(balance.batch == 40);
  CHECK(balance.sequences == std::vector<int64_t>(4, 10));
}

TEST_CASE("a batch that cuts badly moves within a tenth to one that cuts evenly") {
  const std::vector<Pace> paces(4, Pace{.sequence_s = 0.1, .step_s = 0});
  CHECK(balance_batch(paces, {.asked = 41}).batch == 40);
  CHECK(balance_batch(paces, {.asked = 43}).batch == 44);
}

TEST_CASE("a batch below ten is kept, for a tenth of it is no sequence") {
  const std::vector<Pace> paces = {{.sequence_s = 0.1, .step_s = 1.0}};
  CHECK(balance_batch(paces, {.asked = 9}).batch == 9);
}

TEST_CASE("a chip three times as fast takes three times as much") {
  const std::vector<Pace> paces = {{.sequence_s = 0.1, .step_s = 0},
                                   {.sequence_s = 0.3, .step_s = 0}};
  CHECK(balance_batch(paces, {.asked = 40}).sequences == std::vector<int64_t>{30, 10});
}

}  // namespace
}  // namespace pelago::plan
