// How fast the sites are, and what follows from it: how long an exchange waits for a late one, and
// when they share the batch anew.
//
// New shares hold from a data step on. They are decided together with the commit of a round's last
// exchange: no site can pass the merge of an exchange before it has heard of its commit, so no site
// has read beyond that merge yet, and each hears of the new shares with the commit that lets it go
// on, or with a later one. Sites whose data steps lie behind their steps come to them later.
#include <algorithm>

#include "base/error.h"
#include "base/text/json.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {

using nlohmann::json;

int64_t RoundMachine::data_shift(const Site& site) const {
  return site.welcome->data_step - site.welcome->start_step;
}

/// Of a step; 0: not known.
double RoundMachine::pace_s(const Site& site) const {
  return trains(site) ? 1e-6 * static_cast<double>(site.status->step_us) : 0;
}

// The final exchanges are waited for, whatever they take: they say nothing about the others.
void RoundMachine::note_times(int64_t exchange, const Exchange& state) {
  if (exchange >= options_.schedule.num_regular()) return;
  const std::vector<MemberShare>& members = state.begin->members;
  const bool left_one_out = std::any_of(sites_.begin(), sites_.end(), [&](const Site& site) {
    return is_awaited(site, exchange) &&
           std::none_of(members.begin(), members.end(), [&](const MemberShare& member) {
             return member.site == site.name;
           });
  });
  if (left_one_out) {
    grace_.widen();
    return;
  }
  double fastest_s = 0, first_s = now_s_, last_s = 0;
  for (const MemberShare& member : members) {
    const double step_s = pace_s(*find(member.site));
    if (step_s > 0 && (fastest_s == 0 || step_s < fastest_s)) fastest_s = step_s;
    const auto ready = state.ready_s.find(member.site);
    if (ready == state.ready_s.end()) return;
    first_s = std::min(first_s, ready->second);
    last_s = std::max(last_s, ready->second);
  }
  if (fastest_s == 0) return;
  grace_.observe({.step_s = fastest_s,
                  .transfer_s = now_s_ - state.begun_s,
                  .available_s = static_cast<double>(options_.schedule.overlap_steps) * fastest_s,
                  .lateness_s = last_s - first_s});
}

void RoundMachine::share_anew(int64_t exchange) {
  const train::ExchangeSchedule& schedule = options_.schedule;
  const bool is_border = exchange + 1 < schedule.num_regular() &&
                         exchange % schedule.num_fragments == schedule.num_fragments - 1;
  if (!is_border || stop_requested_) return;
  int64_t from = schedule.first_step_after(exchange);
  std::vector<SitePace> paces;
  for (const Site& site : sites_) {
    const ShareChange& now = shares().newest();
    const size_t lane = lane_of(site);
    const int64_t least = options_.shares_least.empty() ? 1 : options_.shares_least[lane];
    paces.push_back({.sequences = now.sequences[lane], .step_s = pace_s(site), .least = least});
    from = std::max(from, ledger_.next_data_step(lane));
    if (!site.welcome) continue;
    // It reads up to the merge at hand; or, if commits were taken back since it joined behind them,
    // up to that of its own first exchange.
    const int64_t waits_for = std::max(exchange, site.welcome->first_exchange);
    from = std::max(from, schedule.first_step_after(waits_for) + data_shift(site));
    // It has not come to the newest shares yet.
    if (site.status && site.status->completed_steps + data_shift(site) < now.data_step) return;
  }
  const std::optional<std::vector<int64_t>> sequences = share_watch_.observe(paces);
  if (!sequences) return;
  const std::vector<int64_t> before = shares().newest().sequences;
  if (!ledger_.change_shares({.data_step = from, .sequences = *sequences})) return;
  keep_shares();
  std::vector<double> step_s;
  for (const SitePace& pace : paces) step_s.push_back(pace.step_s);
  record("site_shares_changed",
         json{{"from_data_step", from},
              {"sites", options_.sites},
              {"sequences_before", before},
              {"sequences", *sequences},
              {"step_s", step_s}}
             .dump());
}

std::vector<ShareChange> RoundMachine::unknown_shares(const Site& site) const {
  std::vector<ShareChange> unknown;
  for (const ShareChange& change : shares().changes()) {
    if (!site.status || site.status->shares_from < change.data_step) unknown.push_back(change);
  }
  return unknown;
}

}  // namespace pelago::sites
