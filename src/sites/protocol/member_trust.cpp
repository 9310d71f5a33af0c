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

void Member::weigh(int64_t exchange, Record& record, int64_t part_idx) {
  const FragmentExchange& part = record.work->part(part_idx);
  const train::Fragment mine = record.work->my_slice(part_idx);
  const std::vector<std::span<const float>> deltas(part.slice_deltas().begin(),
                                                   part.slice_deltas().end());
  if (!record.gram) record.gram.emplace(deltas.size());
  record.gram->add(
      deltas,
      state_->momentum(fragment_of(exchange))
          .subspan(static_cast<size_t>(mine.begin), static_cast<size_t>(mine.end - mine.begin)));
}

void Member::judge(int64_t exchange, Record& record) {
  record.is_judged = true;
  const Shares shares = shares_of(*record.begin);
  const std::vector<DeltaFault> faults =
      watches_[{fragment_of(exchange), shares.sites.size()}].judge(
          shares.sites, shares.has_trained, *record.gram);
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
  if (!record.is_judged) return;
  const Shares shares = shares_of(*record.begin);
  std::vector<bool> teaches = shares.has_trained;
  for (size_t idx = 0; idx < teaches.size(); ++idx) {
    if (record.suspects.contains(shares.sites[idx])) teaches[idx] = false;
  }
  watches_[{fragment_of(exchange), teaches.size()}].learn(shares.sites, teaches, *record.gram);
}

}  // namespace pelago::sites
