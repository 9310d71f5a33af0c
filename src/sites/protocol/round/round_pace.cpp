// How fast the sites are, and what follows from it: how long an exchange waits for a late one, who
// is told to leave steps out or to start anew, and when they share the batch anew.
//
// New shares hold from a data step on. They are decided together with the commit of a round's last
// exchange: no site can pass the merge of an exchange before it has heard of its commit, so no site
// has read beyond that merge yet, and each hears of the new shares with the commit that lets it go
// on, or with a later one. Sites whose data steps lie behind their steps come to them later.
#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/text/json.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {

using nlohmann::json;

// What half of the others have done: one that errs leads nobody astray. 0: there are none.
int64_t RoundMachine::others_step(const Site& site) const {
  std::vector<int64_t> steps;
  for (const Site& other : sites_) {
    if (&other != &site && trains(other)) steps.push_back(completed_steps(other));
  }
  if (steps.empty()) return 0;
  const auto middle = steps.begin() + static_cast<std::ptrdiff_t>(steps.size() / 2);
  std::nth_element(steps.begin(), middle, steps.end());
  return *middle;
}

// All would wait at merges for a site that a fault has put behind. It goes on where the others are
// instead; what it leaves out stays in its lane. What was heard of the others is a little old, so
// it never comes to lie before them.
void RoundMachine::tell_if_behind(const Site& site) {
  constexpr int64_t kStepsMin = 2;  // one is within what the sites' steps differ anyway
  if (options_.behind_s <= 0 || phase_ != RunPhase::kTraining || is_lockstep()) return;
  if (!trains(site)) return;
  const int64_t others = others_step(site);
  const int64_t behind = others - completed_steps(site);
  if (behind < kStepsMin) return;
  double fastest_s = 0;
  for (const Site& each : sites_) {
    const double step_s = pace_s(each);
    if (step_s > 0 && (fastest_s == 0 || step_s < fastest_s)) fastest_s = step_s;
  }
  if (static_cast<double>(behind) * fastest_s < options_.behind_s) return;
  // Not as an answer: a site that also lacks a commit is to be sent that.
  out_.messages.emplace_back(site.name, OthersAt{.incarnation = site.incarnation, .step = others});
}

// Sites all go at one pace, so one that a pause has put behind by more than the others wait for
// stays behind, and nothing that it learns is ever heard. If a whole round begins without it and it
// does not catch up, it is told to start anew: it joins where the others are, and what it had in
// hand returns to its lane. If that does not help (it takes long to start), it is told so less
// often.
void RoundMachine::note_late(int64_t exchange) {
  int64_t furthest = 0;
  for (const Site& site : sites_) {
    if (trains(site)) furthest = std::max(furthest, site.status->completed_steps);
  }
  for (Site& site : sites_) {
    const bool is_heard = now_s_ - site.heard_s < 2 * options_.heartbeat_s;
    const bool is_late = is_awaited(site, exchange) && site.status && is_heard &&
                         ready(site, exchange) == nullptr && site.late.exchange != exchange;
    if (!is_late) continue;
    const int64_t behind = furthest - site.status->completed_steps;
    const bool catches_up = behind + 1 < site.late.behind_steps;
    site.late.exchange = exchange;
    site.late.behind_steps = behind;
    site.late.num_times = catches_up ? 0 : site.late.num_times + 1;
    const int64_t bound = 2 * std::max<int64_t>(options_.schedule.num_fragments, 2)
                          << std::min<int64_t>(site.late.num_anew, 6);
    if (site.late.num_times < bound || stop_requested_ || is_needed(site)) continue;
    record("site_behind", json{{"site", site.name}, {"steps", behind}}.dump());
    dismiss(site, start_anew_reason(site.name), kExitTryAgain);
    expel(site);
    site.late = {.num_anew = site.late.num_anew + 1};
  }
}

// Nobody else can give away what it holds.
bool RoundMachine::is_needed(const Site& site) const {
  for (int64_t fragment = 0; fragment < options_.schedule.num_fragments; ++fragment) {
    const Made* newest = newest_commit(fragment);
    const bool is_elsewhere =
        newest == nullptr || std::any_of(sites_.begin(), sites_.end(), [&](const Site& other) {
          return &other != &site && is_live(other) && may_hold(other, newest->commit);
        });
    if (!is_elsewhere) return true;
  }
  return false;
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
    const int64_t trained =
        site.status ? site.status->completed_steps - site.status->left_out_steps : 0;
    if (site.status && trained + data_shift(site) < now.data_step) return;
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
