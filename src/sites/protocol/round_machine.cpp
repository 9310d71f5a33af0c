// Membership: who is here, who may come in, who is dead, when the run begins and ends. The
// exchanges themselves are in round_exchanges.cpp.
#include "sites/protocol/round_machine.h"

#include <algorithm>

#include "base/error.h"
#include "base/text/json.h"
#include "sites/protocol/round/differences.h"

namespace pelago::sites {

using nlohmann::json;

RoundMachine::RoundMachine(RoundOptions options, const DurableState& known)
    : options_(std::move(options)),
      suspects_(options_.schedule.num_fragments),
      ledger_(LaneShares(options_.shares.empty() ? std::vector<int64_t>(options_.sites.size(), 1)
                                                 : options_.shares),
              options_.schedule.num_fragments),
      grace_({.max_s = options_.grace_s}),
      share_watch_(options_.share_watch) {
  PELAGO_ASSERT(!options_.sites.empty(), "the plan has a site");
  PELAGO_ASSERT(options_.shares.empty() || options_.shares.size() == options_.sites.size(),
                "each site has a share");
  for (const std::string& name : options_.sites) {
    sites_.emplace_back();
    sites_.back().name = name;
  }
  restore(known);
}

RoundMachine::Site* RoundMachine::find(const std::string& name) {
  const auto site = std::find_if(
      sites_.begin(), sites_.end(), [&](const Site& known) { return known.name == name; });
  return site == sites_.end() ? nullptr : &*site;
}

const std::optional<SiteStatus>& RoundMachine::status(const std::string& site) const {
  return const_cast<RoundMachine*>(this)->find(site)->status;
}

void RoundMachine::send(Site& site, const Message& message) {
  site.sent_s = now_s_;
  out_.messages.emplace_back(site.name, message);
}

void RoundMachine::send_live(const Message& message) {
  for (Site& site : sites_) {
    if (is_live(site)) send(site, message);
  }
}

void RoundMachine::record(const std::string& name, const std::string& fields_json) {
  out_.events.emplace_back(name, fields_json);
}

RoundOutput RoundMachine::on_message(const std::string& from,
                                     const Message& message,
                                     double now_s) {
  now_s_ = now_s;
  if (live_) go_on_if_alive(from, message);
  Site* site = find(from);
  if (site == nullptr) {
    ++num_refused_;
    return take_output();
  }
  if (const auto* hello = std::get_if<Hello>(&message)) {
    take_hello(*site, *hello);
  } else if (const auto* status = std::get_if<SiteStatus>(&message)) {
    take_status(*site, *status);
  } else if (const auto* heartbeat = std::get_if<Heartbeat>(&message)) {
    if (heartbeat->incarnation == site->incarnation) {
      hear(*site);
      site->heard_steps = std::max(site->heard_steps, heartbeat->completed_steps);
      tell_if_behind(*site);
    } else if (site->incarnation != 0) {
      ++num_refused_;  // of an earlier start
    }
    answer_heartbeat(*site);
  } else if (const auto* report = std::get_if<Report>(&message)) {
    hear_last_words(*site, *report);
  } else {
    ++num_refused_;  // only sites say the rest to each other
  }
  advance();
  return take_output();
}

// A site gives its coordinator up after a minute: on a thin line not every heartbeat is answered.
void RoundMachine::answer_heartbeat(Site& site) {
  const double silence_s = std::min(kSilentHeartbeats * options_.heartbeat_s, 10.0);
  if (now_s_ - site.alive_s < silence_s) return;
  site.alive_s = now_s_;
  out_.messages.emplace_back(site.name, alive());
}

RoundOutput RoundMachine::on_lost(const std::string& name, double now_s) {
  now_s_ = now_s;
  Site* site = find(name);
  if (site != nullptr && !site->dead && site->incarnation != 0) site->lost_s = now_s;
  return take_output();
}

RoundOutput RoundMachine::on_tick(double now_s) {
  now_s_ = now_s;
  // If this process itself did not run for a while, nobody else is to blame for the silence.
  const double own_gap_s = ticked_s_ ? now_s - *ticked_s_ : 0;
  for (Site& site : sites_) {
    // Nobody can have spoken to this coordinator before it began.
    if (!ticked_s_ && site.is_unheard) site.heard_s = now_s;
    if (site.incarnation == 0 || site.dead) continue;
    if (own_gap_s > 2 * options_.heartbeat_s) site.heard_s += own_gap_s;
    if (now_s - site.heard_s > kSilentHeartbeats * options_.heartbeat_s) {
      mark_dead(site, fmt::format("silent for {:.1f} s", now_s - site.heard_s));
    } else if (site.lost_s && now_s - *site.lost_s > options_.heartbeat_s) {
      mark_dead(site, "its connection broke");
    }
  }
  ticked_s_ = now_s;
  if (term_ > 0 && now_s - called_s_ >= options_.heartbeat_s) call_unheard();
  advance();
  return take_output();
}

// Sites that an earlier coordinator knew, and whose answers may go to its address still.
void RoundMachine::call_unheard() {
  called_s_ = now_s_;
  for (const auto& [name, address] : addresses()) {
    const Site& site = *find(name);
    const bool is_known = live_ || (site.welcome && (site.is_unheard || site.dead));
    if (is_known) out_.messages.emplace_back(name, alive());
  }
}

RoundOutput RoundMachine::request_stop(double now_s) {
  now_s_ = now_s;
  if (!stop_requested_) {
    stop_requested_ = true;
    record("stop_requested", "{}");
    decide_stop();
    keep_run();
  }
  advance();
  return take_output();
}

void RoundMachine::hear(Site& site) {
  site.heard_s = now_s_;
  site.lost_s.reset();
  if (!site.dead) return;
  site.dead = false;
  // What it last said was before it was away: it is not judged by that.
  site.is_unheard = site.welcome.has_value();
  record("site_returned", json{{"site", site.name}}.dump());
}

void RoundMachine::mark_dead(Site& site, const std::string& why) {
  site.dead = true;
  site.is_unheard = false;
  site.died_s = now_s_;
  site.lost_s.reset();
  if (is_finished(site) || failure_) return;
  record("site_lost", json{{"site", site.name}, {"reason", why}}.dump());
  if (is_lockstep()) restart_together(fmt::format("site {} is gone: {}", site.name, why));
}

bool RoundMachine::may_answer(const std::string& name, const Hello& hello) const {
  const Site* site = const_cast<RoundMachine*>(this)->find(name);
  if (site == nullptr || site->past.contains(hello.incarnation)) return false;
  return hello.incarnation == site->incarnation || !is_live(*site) || site->lost_s.has_value();
}

void RoundMachine::take_hello(Site& site, const Hello& hello) {
  if (hello.incarnation == 0) {
    ++num_refused_;
    return;
  }
  if (hello.incarnation == site.incarnation) {  // said again: its answer was lost
    hear(site);
    answer_hello(site);
    return;
  }
  // Of two starts of a site the one that is heard is it. An earlier one whose greeting comes late
  // must not replace it; a later one gets its turn once the other is silent or its line is broken.
  if (!may_answer(site.name, hello)) {
    ++num_refused_;
    tell_to_return(site, hello.incarnation);  // its welcome was lost, and the refusal after it
    return;
  }
  if (refuse_mismatch(site, hello)) return;
  if (is_lockstep() && site.welcome) {
    restart_together(fmt::format("site {} has started anew", site.name));
  }
  const LaneAccount before = account(site.name);
  site.returned = before.returned + before.in_hand;
  if (site.incarnation != 0) site.past.insert(site.incarnation);
  site.incarnation = hello.incarnation;
  site.hello = hello;
  site.status.reset();
  site.held.clear();
  site.heard_steps = 0;
  site.late = {.num_anew = site.late.num_anew};
  site.welcome.reset();
  site.is_unheard = false;
  site.dead = false;  // it is another start; the one that was lost does not return
  hear(site);
  record("site_joined", json{{"site", site.name}, {"address", hello.address}}.dump());
  answer_hello(site);
  // Once the run is over nobody is taken in: the state keeps who was.
  if (phase_ == RunPhase::kStarting || phase_ == RunPhase::kTraining) keep_site(site);
}

bool RoundMachine::refuse_mismatch(Site& site, const Hello& hello) {
  std::string whose = "the run's";
  std::string differing = differences(hello, options_.expected);
  for (const Site& other : sites_) {
    if (!differing.empty()) break;
    // Before the start is decided a site may come again with other files.
    const bool is_self = &other == &site;
    if (other.incarnation == 0 || (is_self && phase_ == RunPhase::kGathering)) continue;
    differing = differences(hello, other.hello);
    whose = is_self ? "those at its first start" : "those of site " + other.name;
  }
  if (differing.empty()) return false;
  const std::string reason = fmt::format(
      "site {}: has other files than {}: its {}; give both the same", site.name, whose, differing);
  ++num_refused_;
  record("site_refused", json{{"site", site.name}, {"reason", reason}}.dump());
  out_.messages.emplace_back(
      site.name,
      Refused{.incarnation = hello.incarnation, .reason = reason, .exit_code = kExitUsage});
  return true;
}

void RoundMachine::dismiss(Site& site, const std::string& reason, int exit_code) {
  send(site, Refused{.incarnation = site.incarnation, .reason = reason, .exit_code = exit_code});
}

/// A start that counts no more while no other has taken its place: it may not know that.
void RoundMachine::tell_to_return(const Site& site, uint64_t incarnation) {
  if (site.incarnation != 0 || !site.past.contains(incarnation)) return;
  const std::string reason = is_lockstep()
                                 ? fmt::format("site {}: the sites start again together", site.name)
                                 : start_anew_reason(site.name);
  out_.messages.emplace_back(
      site.name, Refused{.incarnation = incarnation, .reason = reason, .exit_code = kExitTryAgain});
}

void RoundMachine::take_status(Site& site, const SiteStatus& status) {
  if (status.incarnation != site.incarnation || !site.welcome ||
      static_cast<int64_t>(status.applied.size()) != options_.schedule.num_fragments) {
    ++num_refused_;
    tell_to_return(site, status.incarnation);
    return;
  }
  hear(site);
  site.is_unheard = false;
  if (site.status && status.sequence <= site.status->sequence) return;
  const bool becomes_ready = status.phase == SitePhase::kReady &&
                             (!site.status || site.status->phase != SitePhase::kReady);
  for (const ReadyExchange& held : status.exchanges) {
    const auto known = exchanges_.find(held.exchange);
    const bool is_old = known != exchanges_.end() && known->second.begin && !held.hash.empty() &&
                        held.begun_epoch < known->second.begin->epoch;
    if (is_old) ++num_refused_;
  }
  site.status = status;
  if (note_in_step(site)) return;
  if (const int64_t lost = lost_commit(status, commits_, first_logged_); lost >= 0) {
    record("site_astray", json{{"site", site.name}, {"exchange", lost}}.dump());
    dismiss(site, start_anew_reason(site.name), kExitTryAgain);
    return expel(site);
  }
  std::erase_if(site.status->exchanges,
                [&](const ReadyExchange& held) { return !is_good_delta(site, held); });
  if (status.wants_stop && !stop_requested_) {
    stop_requested_ = true;
    record("stop_requested", json{{"site", site.name}}.dump());
    decide_stop();
    keep_run();
  }
  if (becomes_ready && phase_ == RunPhase::kTraining) {
    allow(site);
  } else if (now_s_ - site.sent_s > options_.heartbeat_s) {
    answer_gaps(site);
  }
}

void RoundMachine::answer_gaps(Site& site) {
  const SiteStatus& status = *site.status;
  if (phase_ == RunPhase::kOver) {
    send(site, Release{});
    return;
  }
  if (phase_ != RunPhase::kTraining) return;
  if (status.phase == SitePhase::kReady) allow(site);
  if (stop_step_ && status.stop_step != *stop_step_) send(site, StopAt{*stop_step_});
  for (int64_t fragment = 0; fragment < options_.schedule.num_fragments; ++fragment) {
    const Made* newest = newest_commit(fragment);
    const int64_t applied = status.applied[static_cast<size_t>(fragment)];
    if (newest != nullptr && applied < newest->commit.exchange) {
      send(site, for_site(*newest, site));
    }
  }
  for (const auto& [exchange, state] : exchanges_) {
    const ReadyExchange* held = ready(site, exchange);
    if (state.begin && held != nullptr && held->begun_epoch < state.begin->epoch) {
      send(site, *state.begin);
    }
  }
}

}  // namespace pelago::sites
