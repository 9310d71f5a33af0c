#include "sites/leases/token_ledger.h"

#include <algorithm>
#include <utility>

namespace pelago::sites {

TokenLedger::TokenLedger(LaneShares shares, int64_t num_fragments)
    : shares_(std::move(shares)), lanes_(shares_.newest().sequences.size()) {
  for (Lane& lane : lanes_) lane.fragments.resize(static_cast<size_t>(num_fragments));
}

void TokenLedger::spend(size_t lane, int64_t fragment, StepRange range) {
  Lane& spent = lanes_[lane];
  RangeSet& of_fragment = spent.fragments[static_cast<size_t>(fragment)];
  RangeSet again;
  again.add(range);
  spent.repeated += shares_.count(lane, of_fragment.intersect(again));
  of_fragment.add(range);
  spent.any.add(range);
}

int64_t TokenLedger::num_spent(size_t lane, int64_t fragment, StepRange range) const {
  return lanes_[lane].fragments[static_cast<size_t>(fragment)].count_in(range);
}

int64_t TokenLedger::next_data_step(size_t lane) const { return lanes_[lane].any.end(); }

LaneAccount TokenLedger::account(size_t lane, int64_t lease_begin, int64_t read_end) const {
  const Lane& spent = lanes_[lane];
  RangeSet whole = spent.any;
  for (const RangeSet& fragment : spent.fragments) whole = whole.intersect(fragment);
  // Steps of a range that are in no committed delta, in sequences.
  const auto unspent = [&](StepRange range) {
    RangeSet all;
    all.add(range);
    return shares_.count(lane, range) - shares_.count(lane, spent.any.intersect(all));
  };
  LaneAccount account;
  account.spent = shares_.count(lane, spent.any);
  account.partly = account.spent - shares_.count(lane, whole);
  account.repeated = spent.repeated;
  const int64_t end = std::max(lease_begin, spent.any.end());
  // Within the lease that is held, a gap is not lost: the delta with it is still to come.
  account.lost = unspent({.begin = 0, .end = end}) - unspent({.begin = lease_begin, .end = end});
  account.in_hand = unspent({.begin = lease_begin, .end = std::max(lease_begin, read_end)});
  return account;
}

}  // namespace pelago::sites
