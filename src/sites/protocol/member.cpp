// Where a site stands in the run: greeting, start, stop, and what it lacks. The exchanges
// themselves are in member_exchanges.cpp.
#include "sites/protocol/member.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"

namespace pelago::sites {

namespace {

// Longer than a fragment takes on any line worth using; a donor that is still sending ignores it.
constexpr double kFetchHeartbeats = 5;
// A coordinator that another has taken over from was silent for longer: it answers after five.
constexpr double kSeekHeartbeats = 8;
constexpr double kQuietHeartbeats = 5;

}  // namespace

Member::Member(MemberOptions options, GlobalState& state)
    : options_(std::move(options)),
      state_(&state),
      shares_(options_.shares),
      pace_(options_.schedule.inner_steps) {
  PELAGO_ASSERT(options_.lane < options_.shares.size(), "this site has a share");
  status_.incarnation = options_.hello.incarnation;
}

MemberActions Member::on_message(const std::string& from, const Message& message, double now_s) {
  now_s_ = now_s;
  if (from == kCoordinatorName) heard_s_ = now_s;
  std::visit([&](const auto& content) { take(from, content); }, message);
  return take_actions();
}

MemberActions Member::on_tick(double now_s) {
  now_s_ = now_s;
  const double own_gap_s = ticked_s_ ? now_s - *ticked_s_ : 0;
  ticked_s_ = now_s;
  if (!heard_s_) heard_s_ = now_s;
  // While this process itself did not run, it could hear nobody.
  if (own_gap_s > 2 * options_.heartbeat_s) *heard_s_ += own_gap_s;
  if (now_s - *heard_s_ > options_.coordinator_silence_s) {
    act(Leave{.exit_code = kExitTryAgain,
              .reason = fmt::format("site {}: the coordinator has been silent for {:.0f} s; see "
                                    "whether it runs, then start this site again",
                                    options_.site,
                                    now_s - *heard_s_)});
    has_left_ = true;
    return take_actions();
  }
  seek_coordinator();
  if (!welcome_ && now_s - greeted_s_ >= options_.heartbeat_s) {
    greeted_s_ = now_s;
    act(SendMessage{.to = kCoordinatorName, .message = options_.hello});
  }
  for (auto& [exchange, record] : records_) {
    const bool is_stuck =
        record.work && !record.outcome && now_s - record.progress_s > 2 * options_.heartbeat_s;
    if (is_stuck) want_missing(exchange, record);
  }
  for (auto& [fragment, fetching] : fetches_) {
    if (now_s - fetching.asked_s > kFetchHeartbeats * options_.heartbeat_s) {
      ask_donor(fragment, fetching);
    }
  }
  return take_actions();
}

MemberActions Member::on_workers_ready(double now_s) {
  now_s_ = now_s;
  status_.phase = SitePhase::kReady;
  status_changed_ = true;
  return take_actions();
}

MemberActions Member::on_finished(double now_s) {
  now_s_ = now_s;
  status_.phase = SitePhase::kFinished;
  status_changed_ = true;
  return take_actions();
}

MemberActions Member::ask_stop(double now_s) {
  now_s_ = now_s;
  if (!welcome_) {
    act(Leave{.exit_code = kExitDone, .reason = "stopped before the run began"});
    has_left_ = true;
  }
  status_changed_ |= !status_.wants_stop;
  status_.wants_stop = true;
  return take_actions();
}

void Member::take(const std::string& from, const Welcome& welcome) {
  if (from != kCoordinatorName || welcome.incarnation != status_.incarnation) {
    refuse(from, "welcome of another start");
    return;
  }
  if (welcome_) return;
  welcome_ = welcome;
  status_changed_ = true;
  take_shares(welcome.shares);
  if (welcome.mode != StartMode::kJoin) {
    status_.phase = SitePhase::kStarting;
    for (const SiteAddress& peer : welcome.peers) {
      if (peer.site != options_.site) {
        act(KnowAddress{.site = peer.site, .address = peer.address});
      }
    }
    act(StartWorkers{.mode = welcome.mode,
                     .step = welcome.start_step,
                     .data_step = welcome.data_step,
                     .start_number = welcome.start_number});
    return;
  }
  // Of each fragment, the newest exchange before the first that this site takes part in.
  const auto num_fragments = static_cast<int64_t>(state_->fragments().size());
  for (int64_t fragment = 0; fragment < num_fragments; ++fragment) {
    int64_t newest = welcome.first_exchange - 1;
    while (newest >= welcome.first_logged && newest % num_fragments != fragment) --newest;
    fetch(fragment, newest >= welcome.first_logged ? newest : -1, welcome.donors);
  }
}

// Told before the merge that lets the workers go on to the step from which they hold.
void Member::take_shares(const std::vector<ShareChange>& changes) {
  for (const ShareChange& change : changes) {
    if (change.data_step <= shares_.newest().data_step) continue;  // said again
    const Status added = shares_.add(change);
    if (!added) return refuse(kCoordinatorName, added.error().message);
    status_.shares_from = change.data_step;
    status_changed_ = true;
    act(TakeShares{.step = change.data_step - data_shift(), .sequences = change.sequences});
  }
}

void Member::on_step(int64_t completed_steps, double step_s) {
  status_.completed_steps = completed_steps;
  const int64_t data_step = completed_steps - 1 + data_shift();
  pace_.note(shares_.at(data_step).sequences[options_.lane], step_s);
}

void Member::take(const std::string& from, const Refused& refused) {
  if (from != kCoordinatorName || refused.incarnation != status_.incarnation) {
    refuse(from, "refusal of another start");
    return;
  }
  act(Leave{.exit_code = refused.exit_code,
            .reason = refused.reason,
            .is_to_return = refused.exit_code == kExitTryAgain});
  has_left_ = true;
}

void Member::take(const std::string& from, const AllowTraining& allow) {
  if (from != kCoordinatorName || allow.incarnation != status_.incarnation) {
    refuse(from, "leave to train of another start");
    return;
  }
  if (status_.phase != SitePhase::kReady) return;
  status_.phase = SitePhase::kTraining;
  status_changed_ = true;
  act(LetTrain{});
}

void Member::take(const std::string& from, const StopAt& stop) {
  if (from != kCoordinatorName) return refuse(from, "stop");
  if (status_.phase != SitePhase::kTraining || status_.stop_step == stop.step) return;
  status_.stop_step = stop.step;
  status_changed_ = true;
  act(StopTraining{stop.step});
}

void Member::take(const std::string& from, const Release&) {
  if (from != kCoordinatorName) return refuse(from, "release");
  act(Leave{.exit_code = kExitDone, .reason = "the run is over"});
  has_left_ = true;
}

void Member::take(const std::string& from, const Alive& alive) {
  if (from != kCoordinatorName) return refuse(from, "answer to a heartbeat");
  // One that another has taken over from may not know it yet.
  if (alive.term < coordinator_term_ || alive.address.empty()) return;
  coordinator_term_ = alive.term;
  act(KnowAddress{.site = kCoordinatorName, .address = alive.address});
}

// It may have died, and another have taken over that does not know where this site is.
void Member::seek_coordinator() {
  const double silent_s = now_s_ - std::max(*heard_s_, sought_s_);
  if (options_.coordinators.size() < 2 || silent_s < kSeekHeartbeats * options_.heartbeat_s) return;
  sought_s_ = now_s_;
  coordinator_idx_ = (coordinator_idx_ + 1) % options_.coordinators.size();
  act(KnowAddress{.site = kCoordinatorName, .address = options_.coordinators[coordinator_idx_]});
}

void Member::fetch(int64_t fragment, int64_t exchange_min, const std::vector<SiteAddress>& donors) {
  Fetching& fetching = fetches_[fragment];
  if (!fetching.donors.empty() && fetching.exchange_min >= exchange_min) return;
  fetching = Fetching{.exchange_min = exchange_min,
                      .donors = donors,
                      .next_donor = 0,
                      .asked_s = -1e9,
                      .early = {}};
  ask_donor(fragment, fetching);
}

void Member::ask_donor(int64_t fragment, Fetching& fetching) {
  fetching.asked_s = now_s_;
  std::erase_if(fetching.donors,
                [&](const SiteAddress& donor) { return donor.site == options_.site; });
  if (fetching.donors.empty()) return;
  const SiteAddress& donor = fetching.donors[fetching.next_donor++ % fetching.donors.size()];
  act(KnowAddress{.site = donor.site, .address = donor.address});
  act(SendMessage{.to = donor.site,
                  .message = Fetch{.fragment = fragment,
                                   .exchange_min = fetching.exchange_min,
                                   .address = options_.hello.address}});
}

void Member::take(const std::string& from, const Fetch& fetch) {
  const auto num_fragments = static_cast<int64_t>(state_->fragments().size());
  if (fetch.fragment < 0 || fetch.fragment >= num_fragments) {
    return refuse(from, "request for a fragment that is not there");
  }
  const int64_t exchange = state_->applied()[static_cast<size_t>(fetch.fragment)];
  const bool has_state =
      status_.phase == SitePhase::kTraining || status_.phase == SitePhase::kFinished;
  // Not yet here: whoever asked will ask again, perhaps another.
  if (!has_state || exchange < fetch.exchange_min) return;
  // Asked again, it may still be on its way. Another fragment to the same site is not "again".
  const bool again = !answered_.insert({fetch.address, fetch.fragment, exchange}).second;
  act(KnowAddress{.site = from, .address = fetch.address});
  act(SendMessage{.to = from,
                  .message = FragmentState{.fragment = fetch.fragment,
                                           .exchange = exchange,
                                           .hash = state_->fragment_hash(fetch.fragment),
                                           .payload = state_->to_bytes(fetch.fragment)},
                  .again = again});
}

void Member::take(const std::string& from, const FragmentState& fetched) {
  const auto fetching = fetches_.find(fetched.fragment);
  if (fetching == fetches_.end()) return;  // another donor was faster
  if (fetched.exchange < fetching->second.exchange_min) return refuse(from, "an older fragment");
  fetching->second.early = fetched;
  believe(fetched.fragment, fetching->second);
}

// Takes a fetched fragment over if the coordinator's commit vouches for it.
void Member::believe(int64_t fragment, Fetching& fetching) {
  const FragmentState fetched = *fetching.early;
  if (fetched.exchange >= welcome_->first_logged) {
    const auto known = known_commits_.find(fetched.exchange);
    if (known == known_commits_.end()) return;  // the donor heard of the commit first
    if (known->second.hash != fetched.hash) {
      fetching.early.reset();
      return refuse("a donor", "a fragment whose hash is not the committed one");
    }
  }
  const Result<FragmentOutcome> outcome =
      state_->from_bytes(fragment, fetched.payload, fetched.hash);
  if (!outcome) {
    fetching.early.reset();
    return refuse("a donor", outcome.error().message);
  }
  keep_unsent(fragment, fetched.exchange);
  state_->apply(fragment, fetched.exchange, *outcome);
  fetches_.erase(fragment);
  status_changed_ = true;
  if (status_.phase == SitePhase::kCatchingUp && fetches_.empty()) {
    state_->set_sent_steps(welcome_->start_step);
    status_.phase = SitePhase::kStarting;
    act(StartWorkers{.mode = StartMode::kJoin,
                     .step = welcome_->start_step,
                     .data_step = welcome_->data_step,
                     .start_number = 0});
  }
  settle_all();
}

void Member::refuse(const std::string& from, const std::string& why) {
  ++status_.num_refused;
  log_debug("refused from={} what=\"{}\"", from, why);
}

void Member::tell_status() {
  if (!welcome_ || has_left_) return;
  ++status_.sequence;
  status_.applied = state_->applied();
  status_.step_us = pace_.median_us();
  status_.exchanges.clear();
  for (const auto& [exchange, record] : records_) {
    status_.exchanges.push_back({.exchange = exchange,
                                 .tokens = record.tokens,
                                 .data_begin = record.data_begin,
                                 .data_end = record.data_end,
                                 .begun_epoch = record.begin ? record.begin->epoch : -1,
                                 .hash = record.outcome ? record.outcome->hash : "",
                                 .missing = missing(record),
                                 .suspects = {},
                                 .faults = {}});
    for (const auto& [site, fault] : record.suspects) {
      status_.exchanges.back().suspects.push_back(site);
      status_.exchanges.back().faults.push_back(fault);
    }
  }
  act(SendMessage{.to = kCoordinatorName, .message = status_});
  told_s_ = now_s_;
  status_changed_ = false;
}

MemberActions Member::take_actions() {
  // With nothing under way nothing can have been missed. Where another coordinator may take over,
  // the answers show that this one is still it.
  // Of sites in step the coordinator has only this to tell how far they are.
  const bool is_quiet = status_.phase == SitePhase::kTraining && records_.empty() &&
                        fetches_.empty() && !status_.wants_stop &&
                        options_.coordinators.size() < 2 && options_.schedule.num_fragments > 0;
  const double pause_s = (is_quiet ? kQuietHeartbeats : 1) * options_.heartbeat_s;
  if (status_changed_ || now_s_ - told_s_ >= pause_s) tell_status();
  return std::exchange(actions_, {});
}

}  // namespace pelago::sites
