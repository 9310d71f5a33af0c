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
  TokenLedger ledger(1, 2);
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
  TokenLedger ledger(1, 1);
  ledger.spend(0, 0, {.begin = 0, .end = 4});
  ledger.spend(0, 0, {.begin = 3, .end = 6});
  ledger.spend(0, 0, {.begin = 9, .end = 10});
  const LaneAccount account = ledger.account(0, 9, 10);
  CHECK(account.repeated == 1);
  CHECK(account.lost == 3);
  CHECK(account.spent == 7);
}

}  // namespace
}  // namespace pelago::sites
