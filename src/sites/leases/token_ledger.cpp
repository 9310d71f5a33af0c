#include "sites/leases/token_ledger.h"

#include <algorithm>

namespace pelago::sites {

TokenLedger::TokenLedger(size_t num_lanes, int64_t num_fragments) : lanes_(num_lanes) {
  for (Lane& lane : lanes_) lane.fragments.resize(static_cast<size_t>(num_fragments));
}

void TokenLedger::spend(size_t lane, int64_t fragment, StepRange range) {
  Lane& spent = lanes_[lane];
  spent.repeated += spent.fragments[static_cast<size_t>(fragment)].add(range);
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
  LaneAccount account;
  account.spent = spent.any.count();
  account.partly = account.spent - whole.count();
  account.repeated = spent.repeated;
  const StepRange before{.begin = 0, .end = std::max(lease_begin, spent.any.end())};
  const StepRange of_lease{.begin = lease_begin, .end = before.end};
  // Within the lease that is held, a gap is not lost: the delta with it is still to come.
  account.lost = (before.end - spent.any.count_in(before)) -
                 std::max<int64_t>(0, of_lease.end - of_lease.begin - spent.any.count_in(of_lease));
  const StepRange read{.begin = lease_begin, .end = std::max(lease_begin, read_end)};
  account.in_hand = read.end - read.begin - spent.any.count_in(read);
  return account;
}

}  // namespace pelago::sites
