#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "base/rng.h"
#include "sites/leases/token_ledger.h"

namespace pelago::sites {
namespace {

TEST_CASE("a set of ranges counts as a set of numbers does, whatever is added in which order") {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    CAPTURE(seed);
    Rng rng = Rng(seed).fork("ranges");
    RangeSet set;
    std::vector<bool> plain(60, false);
    for (int i = 0; i < 12; ++i) {
      const auto begin = static_cast<int64_t>(rng.next_below(50));
      const auto end = begin + static_cast<int64_t>(rng.next_below(10));
      int64_t before = 0;
      for (int64_t at = begin; at < end; ++at) {
        before += plain[static_cast<size_t>(at)] ? 1 : 0;
        plain[static_cast<size_t>(at)] = true;
      }
      REQUIRE(set.add({.begin = begin, .end = end}) == before);
    }
    REQUIRE(set.count() == std::count(plain.begin(), plain.end(), true));
    REQUIRE(set.count_in({.begin = 7, .end = 31}) ==
            std::count(plain.begin() + 7, plain.begin() + 31, true));
  }
}

TEST_CASE("what a lost start had read returns to the lane, and the account names every data step") {
  TokenLedger ledger(LaneShares({1}), 2);
  ledger.spend(0, 0, {.begin = 0, .end = 4});
  ledger.spend(0, 1, {.begin = 0, .end = 6});
  ledger.spend(0, 0, {.begin = 4, .end = 8});
  CHECK(ledger.next_data_step(0) == 8);
  // It had read ten; fragment 1 never had 6 and 7.
  const LaneAccount account = ledger.account(0, 0, 10);
  CHECK(account.spent == 8);
  CHECK(account.partly == 2);
  CHECK(account.in_hand == 2);
  CHECK(account.lost == 0);
  CHECK(account.repeated == 0);
}

TEST_CASE("a data step in two deltas of a fragment is counted as repeated, a skipped one as lost") {
  TokenLedger ledger(LaneShares({1}), 1);
  ledger.spend(0, 0, {.begin = 0, .end = 4});
  ledger.spend(0, 0, {.begin = 3, .end = 6});
  ledger.spend(0, 0, {.begin = 9, .end = 10});
  const LaneAccount account = ledger.account(0, 9, 10);
  CHECK(account.repeated == 1);
  CHECK(account.lost == 3);
  CHECK(account.spent == 7);
}

TEST_CASE("every sample of a batch is in one lane, before and after a change of shares") {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    CAPTURE(seed);
    Rng rng = Rng(seed).fork("lanes");
    LaneShares shares({3, 4, 5});
    for (int64_t step = 0; step < 40;) {
      step += 1 + static_cast<int64_t>(rng.next_below(15));
      const auto first = static_cast<int64_t>(rng.next_below(13));
      const auto second = static_cast<int64_t>(rng.next_below(static_cast<uint64_t>(13 - first)));
      REQUIRE(shares.add({.data_step = step, .sequences = {first, second, 12 - first - second}}));
    }
    // The lanes of each step make a batch, and counting a range is adding up its steps.
    const auto begin = static_cast<int64_t>(rng.next_below(30));
    const StepRange range{.begin = begin, .end = begin + static_cast<int64_t>(rng.next_below(30))};
    for (size_t lane = 0; lane < 3; ++lane) {
      int64_t sum = 0;
      for (int64_t step = range.begin; step < range.end; ++step) {
        sum += shares.at(step).sequences[lane];
      }
      REQUIRE(shares.count(lane, range) == sum);
      RangeSet set;
      set.add({.begin = 0, .end = 2});
      set.add({.begin = 5, .end = 9});
      REQUIRE(shares.count(lane, set) == shares.count(lane, StepRange{.begin = 0, .end = 2}) +
                                             shares.count(lane, StepRange{.begin = 5, .end = 9}));
    }
  }
}

TEST_CASE("shares of another batch, of other lanes or of steps that have shares are refused") {
  LaneShares shares({3, 5});
  REQUIRE(shares.add({.data_step = 10, .sequences = {4, 4}}));
  for (const ShareChange& bad : {ShareChange{.data_step = 10, .sequences = {2, 6}},
                                 ShareChange{.data_step = 0, .sequences = {2, 6}},
                                 ShareChange{.data_step = 20, .sequences = {4, 5}},
                                 ShareChange{.data_step = 20, .sequences = {-1, 9}},
                                 ShareChange{.data_step = 20, .sequences = {4, 4, 0}}}) {
    CHECK_FALSE(shares.add(bad));
  }
  CHECK(shares.changes().size() == 1);
  shares.forget_from(10);
  CHECK(shares.at(99).sequences == std::vector<int64_t>{3, 5});
}

TEST_CASE("the account weighs each data step by the share that held in it") {
  TokenLedger ledger(LaneShares({2, 6}), 1);
  REQUIRE(ledger.change_shares({.data_step = 4, .sequences = {5, 3}}));
  ledger.spend(0, 0, {.begin = 0, .end = 6});
  ledger.spend(0, 0, {.begin = 5, .end = 7});
  const LaneAccount account = ledger.account(0, 0, 10);
  CHECK(account.spent == 4 * 2 + 3 * 5);
  CHECK(account.repeated == 5);
  CHECK(account.in_hand == 3 * 5);
  CHECK(ledger.account(1, 4, 6).lost == 4 * 6);
}

}  // namespace
}  // namespace pelago::sites
