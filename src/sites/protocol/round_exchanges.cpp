// The life of an exchange: gathering -> exchanging(epoch) -> committed, and the common stop.
#include <algorithm>

#include "base/error.h"
#include "base/text/json.h"
#include "sites/protocol/round_machine.h"

namespace pelago::sites {

using nlohmann::json;

int64_t RoundMachine::fragment_of(int64_t exchange) const {
  const int64_t num_regular = options_.schedule.num_regular();
  return exchange < num_regular ? exchange % options_.schedule.num_fragments
                                : exchange - num_regular;
}

int64_t RoundMachine::snapshot_step(int64_t exchange) const {
  return exchange < options_.schedule.num_regular() ? (exchange + 1) * options_.schedule.interval()
                                                    : options_.schedule.num_steps;
}

// Its data steps must be those of the site's lease, up to the snapshot, and none that this fragment
// has had: a site that missed the commit of its own delta must hear of it first.
bool RoundMachine::is_good_delta(const Site& site, const ReadyExchange& held) {
  const bool is_possible =
      held.exchange >= 0 &&
      held.exchange < options_.schedule.num_regular() + options_.schedule.num_fragments;
  if (is_possible && commits_.contains(held.exchange)) return true;  // it waits for the commit
  // Steps that it left out before the snapshot, of those that it left out at all, read nothing.
  const int64_t end_max = is_possible ? snapshot_step(held.exchange) + data_shift(site) : 0;
  const bool is_of_lease = is_possible && held.tokens >= 0 && held.data_begin >= 0 &&
                           held.data_begin <= held.data_end && held.data_end <= end_max &&
                           held.data_end >= end_max - site.status->left_out_steps;
  if (!is_of_lease) {
    ++num_refused_;
    return false;
  }
  return ledger_.num_spent(lane_of(site),
                           fragment_of(held.exchange),
                           {.begin = held.data_begin, .end = held.data_end}) == 0;
}

const ReadyExchange* RoundMachine::ready(const Site& site, int64_t exchange) const {
  if (!is_live(site) || !site.status) return nullptr;
  for (const ReadyExchange& held : site.status->exchanges) {
    if (held.exchange == exchange) return &held;
  }
  return nullptr;
}

// A site still starting is not waited for: one that dies at each start would hold up the others.
bool RoundMachine::is_awaited(const Site& site, int64_t exchange) const {
  if (!is_live(site) || site.welcome->first_exchange > exchange) return false;
  if (!site.status) return site.is_unheard;
  return site.status->phase == SitePhase::kTraining || site.status->phase == SitePhase::kReady;
}

void RoundMachine::collect_ready() {
  const int64_t num_exchanges = options_.schedule.num_regular() + options_.schedule.num_fragments;
  for (const Site& site : sites_) {
    if (!is_live(site) || !site.status) continue;
    for (const ReadyExchange& held : site.status->exchanges) {
      const bool is_possible = held.exchange >= first_logged_ && held.exchange < num_exchanges;
      if (!is_possible || commits_.contains(held.exchange)) continue;
      Exchange& state = exchanges_[held.exchange];
      if (state.ready_s.empty()) state.first_ready_s = now_s_;
      state.ready_s.try_emplace(site.name, now_s_);
    }
  }
}

bool RoundMachine::is_due(int64_t exchange, const Exchange& state) const {
  const bool all_ready = std::all_of(sites_.begin(), sites_.end(), [&](const Site& site) {
    return !is_awaited(site, exchange) || ready(site, exchange) != nullptr;
  });
  return all_ready || now_s_ - state.first_ready_s >= grace_.seconds();
}

void RoundMachine::advance_exchange(int64_t exchange, Exchange& state) {
  if (!state.begin) {
    if (is_due(exchange, state)) begin(exchange, state);
    return;
  }
  const auto is_here = [&](const MemberShare& member) {
    return ready(*find(member.site), exchange) != nullptr;
  };
  const std::vector<MemberShare>& members = state.begin->members;
  if (!std::all_of(members.begin(), members.end(), is_here)) {
    begin(exchange, state);
  } else if (leave_out_suspects(exchange, state)) {
    begin(exchange, state);
  } else if (!commit_if_held(exchange, *state.begin) && stop_is_known() &&
             now_s_ - state.begun_s > options_.exchange_s) {
    leave_out_late(exchange, state);
    begin(exchange, state);
  }
}

void RoundMachine::begin(int64_t exchange, Exchange& state) {
  Begin next{.exchange = exchange, .epoch = ++epoch_, .members = {}};
  const auto is_in = [&](const Site& site) {
    return ready(site, exchange) != nullptr && !state.left_out.contains(site.name);
  };
  // Suspects alone are better than nobody.
  const bool has_others = std::any_of(sites_.begin(), sites_.end(), [&](const Site& site) {
    return is_in(site) && !suspects_.sits_out(site.name, exchange);
  });
  for (const Site& site : sites_) {
    if (!is_in(site) || (has_others && suspects_.sits_out(site.name, exchange))) continue;
    const ReadyExchange* held = ready(site, exchange);
    next.members.push_back({.site = site.name,
                            .address = site.hello.address,
                            .tokens = held->tokens,
                            .data_begin = held->data_begin,
                            .data_end = held->data_end});
  }
  state.begun_s = now_s_;
  if (next.members.empty()) {  // whoever was ready has died: gather anew
    state = Exchange{};
    return;
  }
  if (state.begin) {
    record("exchange_redone", json{{"exchange", exchange}, {"epoch", next.epoch}}.dump());
  }
  for (const Site& site : sites_) {
    const bool is_member =
        std::any_of(next.members.begin(), next.members.end(), [&](const MemberShare& member) {
          return member.site == site.name;
        });
    if (is_awaited(site, exchange) && !is_member) {
      record("site_left_out",
             json{{"site", site.name},
                  {"exchange", exchange},
                  {"waited_s", 1e-3 * std::round(1e3 * (now_s_ - state.first_ready_s))}}
                 .dump());
    }
  }
  state.begin = next;
  send_live(next);
  note_late(exchange);
}

// Somebody's pieces do not get through. If some hold the result, those that do not are late; if
// nobody does, the one that most others miss is, and of equals the last in site order.
void RoundMachine::leave_out_late(int64_t exchange, Exchange& state) {
  std::map<std::string, int64_t> num_accusers;
  std::set<std::string> without;
  for (const MemberShare& member : state.begin->members) {
    const ReadyExchange* held = ready(*find(member.site), exchange);
    num_accusers.try_emplace(member.site, 0);
    if (held->begun_epoch != state.begin->epoch || held->hash.empty()) without.insert(member.site);
    for (const std::string& missing : held->missing) ++num_accusers[missing];
  }
  if (without.size() < state.begin->members.size()) {
    state.left_out.insert(without.begin(), without.end());
    return;
  }
  const MemberShare* accused = nullptr;
  for (const MemberShare& member : state.begin->members) {
    const bool is_worse =
        accused == nullptr || num_accusers[member.site] >= num_accusers[accused->site];
    if (is_worse) accused = &member;
  }
  if (state.begin->members.size() > 1) state.left_out.insert(accused->site);
}

// Whoever half of the members find at fault: it sits this exchange out, and a round.
bool RoundMachine::leave_out_suspects(int64_t exchange, Exchange& state) {
  const std::vector<MemberShare>& members = state.begin->members;
  std::vector<std::vector<Accusation>> votes;
  for (const MemberShare& member : members) {
    const ReadyExchange* held = ready(*find(member.site), exchange);
    std::vector<Accusation>& vote = votes.emplace_back();
    if (held->begun_epoch != state.begin->epoch) continue;
    const size_t num_suspects = std::min(held->suspects.size(), held->faults.size());
    for (size_t idx = 0; idx < num_suspects; ++idx) {
      vote.push_back({.site = held->suspects[idx], .fault = held->faults[idx]});
    }
  }
  bool is_anybody = false;
  for (const Accusation& convicted : Suspects::convict(votes)) {
    const bool is_member = std::any_of(members.begin(), members.end(), [&](const auto& member) {
      return member.site == convicted.site;
    });
    if (!is_member) continue;
    is_anybody = true;
    state.left_out.insert(convicted.site);
    const int64_t back_at = suspects_.suspend(convicted.site, exchange);
    record("site_suspect",
           json{{"site", convicted.site},
                {"exchange", exchange},
                {"fault", convicted.fault},
                {"back_at_exchange", back_at}}
               .dump());
  }
  return is_anybody;
}

bool RoundMachine::commit_if_held(int64_t exchange, const Begin& begun) {
  for (const MemberShare& member : begun.members) {
    const ReadyExchange* held = ready(*find(member.site), exchange);
    if (held->begun_epoch != begun.epoch || held->hash.empty()) return false;
  }
  if (!stop_is_known()) return false;
  Made made{.commit = agreed(exchange, begun), .incarnations = {}};
  for (const MemberShare& member : begun.members) {
    made.incarnations[member.site] = find(member.site)->incarnation;
  }
  const auto [kept, is_new] = commits_.emplace(exchange, std::move(made));
  PELAGO_ASSERT(is_new, "an exchange is committed once");
  const Commit& commit = kept->second.commit;
  for (const SiteAddress& donor : commit.donors) find(donor.site)->held.insert(exchange);
  for (const MemberShare& member : commit.members) find(member.site)->late = {};
  ++num_commits_;
  while (commits_.contains(next_exchange_)) ++next_exchange_;
  std::vector<std::string> names;
  for (const MemberShare& member : commit.members) names.push_back(member.site);
  for (const std::string& site : suspects_.on_commit(exchange, names)) {
    record("site_cleared", json{{"site", site}, {"exchange", exchange}}.dump());
  }
  spend(commit);
  note_times(exchange, exchanges_.at(exchange));
  share_anew(exchange);
  keep_commit(kept->second);
  out_.commits.push_back(commit);
  for (Site& site : sites_) {
    if (is_live(site)) send(site, for_site(kept->second, site));
  }
  return true;
}

// What most members hold. Those that hold something else are no donors.
Commit RoundMachine::agreed(int64_t exchange, const Begin& begun) {
  Commit commit{.exchange = exchange,
                .epoch = begun.epoch,
                .members = begun.members,
                .hash = {},
                .donors = {}};
  std::map<std::string, int64_t> num_holders;  // by hash
  for (const MemberShare& member : begun.members) {
    ++num_holders[ready(*find(member.site), exchange)->hash];
  }
  for (const MemberShare& member : begun.members) {
    const std::string& hash = ready(*find(member.site), exchange)->hash;
    if (commit.hash.empty() || num_holders[hash] > num_holders[commit.hash]) commit.hash = hash;
  }
  for (const MemberShare& member : begun.members) {
    if (ready(*find(member.site), exchange)->hash == commit.hash) {
      commit.donors.push_back({.site = member.site, .address = member.address});
    } else {
      ++num_differing_;
      record("hash_differs", json{{"site", member.site}, {"exchange", exchange}}.dump());
    }
  }
  return commit;
}

const RoundMachine::Made* RoundMachine::newest_commit(int64_t fragment) const {
  for (auto made = commits_.rbegin(); made != commits_.rend(); ++made) {
    if (fragment_of(made->first) == fragment) return &made->second;
  }
  return nullptr;
}

// A silent site keeps what it holds: it may only be cut off.
bool RoundMachine::may_hold(const Site& site, const Commit& commit) const {
  const double silence_s = site.dead ? now_s_ - site.died_s : 0;
  if (silence_s > options_.absence_s) return false;
  if (site.is_unheard || site.held.contains(commit.exchange)) return true;
  const auto fragment = static_cast<size_t>(fragment_of(commit.exchange));
  return site.status && site.status->applied[fragment] >= commit.exchange;
}

// With those that can give it away, and with what of the site's own deltas has been taken.
Commit RoundMachine::for_site(const Made& made, const Site& site) const {
  Commit commit = made.commit;
  commit.donors.clear();
  for (const Site& donor : sites_) {
    if (&donor != &site && is_live(donor) && may_hold(donor, commit)) {
      commit.donors.push_back({.site = donor.name, .address = donor.hello.address});
    }
  }
  const int64_t fragment = fragment_of(commit.exchange);
  if (newest_commit(fragment) == &made) commit.lost_epoch = lost_epoch_;
  for (auto taken = commits_.rbegin(); taken != commits_.rend(); ++taken) {
    if (fragment_of(taken->first) != fragment) continue;
    const auto member = taken->second.incarnations.find(site.name);
    if (member == taken->second.incarnations.end() || member->second != site.incarnation) continue;
    commit.taken_exchange = taken->first;
    commit.taken_epoch = taken->second.commit.epoch;
    break;
  }
  commit.shares = unknown_shares(site);
  return commit;
}

// It was too long away: what it holds may no longer be what was committed, or comes too late.
void RoundMachine::expel(Site& site) {
  const LaneAccount before = account(site.name);
  site.returned = before.returned + before.in_hand;
  site.past.insert(std::exchange(site.incarnation, 0));
  site.welcome.reset();
  site.status.reset();
  site.held.clear();
  record("site_expelled", json{{"site", site.name}}.dump());
  keep_site(site);
}

// If a fragment's newest commit is held, so is every older one.
void RoundMachine::revoke_lost() {
  if (std::none_of(sites_.begin(), sites_.end(), [&](const Site& site) { return trains(site); })) {
    return;  // nobody could do it again
  }
  for (int64_t fragment = 0; fragment < options_.schedule.num_fragments; ++fragment) {
    while (const Made* newest = newest_commit(fragment)) {
      const int64_t exchange = newest->commit.exchange;
      const bool is_kept = std::any_of(sites_.begin(), sites_.end(), [&](const Site& site) {
        return may_hold(site, newest->commit);
      });
      if (is_kept) break;
      for (Site& site : sites_) {
        if (site.dead && site.welcome) expel(site);
      }
      record("commit_lost", json{{"exchange", exchange}}.dump());
      next_exchange_ = std::min(next_exchange_, exchange);
      commits_.erase(exchange);
      lost_epoch_ = ++epoch_;
      out_.writes.push_back({.key = fmt::format("commit/{}", exchange), .value = {}});
      count_again();
    }
  }
}

// No site can pass the merge of an exchange before its commit, so every site can still stop right
// after the merge of the first exchange that is not committed, if it hears of it before that
// commit: the commit waits until all have said so.
void RoundMachine::decide_stop() {
  if (phase_ != RunPhase::kTraining || stop_step_) return;
  if (is_lockstep()) return stop_in_step();
  if (next_exchange_ >= options_.schedule.num_regular()) return;  // it ends by itself, and soon
  const int64_t step = options_.schedule.first_step_after(next_exchange_);
  if (step >= options_.schedule.num_steps) return;
  stop_step_ = step;
  record("stopping", json{{"step", step}}.dump());
  send_live(StopAt{step});
}

bool RoundMachine::stop_is_known() const {
  if (!stop_step_) return true;
  return std::all_of(sites_.begin(), sites_.end(), [&](const Site& site) {
    if (is_live(site) && site.is_unheard) return false;
    const bool trains = is_live(site) && site.status && site.status->phase == SitePhase::kTraining;
    return !trains || site.status->stop_step == *stop_step_;
  });
}

}  // namespace pelago::sites
