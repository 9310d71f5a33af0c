// A member looks at every delta of the slice that it sums. It alone has seen that slice: what it
// suspects goes to the coordinator, which counts who says what.
#include "base/log.h"
#include "sites/protocol/member.h"

namespace pelago::sites {

namespace {

struct Shares {
  std::vector<std::string> sites;
  std::vector<bool> has_trained;
};

Shares shares_of(const Begin& begin) {
  Shares shares;
  for (const MemberShare& member : begin.members) {
    shares.sites.push_back(member.site);
    shares.has_trained.push_back(member.tokens > 0);
  }
  return shares;
}

}  // namespace

void Member::judge(int64_t exchange, Record& record) {
  const FragmentExchange& work = *record.work;
  const int64_t fragment = fragment_of(exchange);
  const train::Fragment& mine = work.my_slice();
  const std::vector<std::span<const float>> deltas(work.slice_deltas().begin(),
                                                   work.slice_deltas().end());
  record.gram.emplace(deltas.size());
  record.gram->add(deltas,
                   state_->momentum(fragment).subspan(static_cast<size_t>(mine.begin),
                                                      static_cast<size_t>(mine.end - mine.begin)));
  const Shares shares = shares_of(*record.begin);
  const std::vector<DeltaFault> faults =
      watches_[{fragment, deltas.size()}].judge(shares.sites, shares.has_trained, *record.gram);
  for (size_t idx = 0; idx < faults.size(); ++idx) {
    if (faults[idx] == DeltaFault::kNone) continue;
    const std::string& site = shares.sites[idx];
    record.suspects[site] = name_of(faults[idx]);
    status_changed_ = true;
    log_warn("delta at fault exchange={} site={} fault=\"{}\" rms={:.3g}",
             exchange,
             site,
             name_of(faults[idx]),
             record.gram->rms(idx));
  }
}

void Member::learn(int64_t exchange, const Record& record) {
  if (!record.gram) return;
  const Shares shares = shares_of(*record.begin);
  std::vector<bool> teaches = shares.has_trained;
  for (size_t idx = 0; idx < teaches.size(); ++idx) {
    if (record.suspects.contains(shares.sites[idx])) teaches[idx] = false;
  }
  watches_[{fragment_of(exchange), teaches.size()}].learn(shares.sites, teaches, *record.gram);
}

}  // namespace pelago::sites
