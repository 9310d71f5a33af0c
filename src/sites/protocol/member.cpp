// Where a site stands in the run: greeting, start, stop, and what it lacks. The exchanges
// themselves are in member_exchanges.cpp.
#include "sites/protocol/member.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"

namespace pelago::sites {

namespace {

// A coordinator that another has taken over from was silent for longer: it answers after five.
constexpr double kSeekHeartbeats = 8;
constexpr double kQuietHeartbeats = 5;

}  // namespace

Member::Member(MemberOptions options, GlobalState& state)
    : options_(std::move(options)),
      state_(&state),
      shares_(options_.shares),
      pace_(options_.schedule.inner_steps),
      shelf_(state),
      fetcher_(
          {.site = options_.site,
           .address = options_.hello.address,
           .heartbeat_s = options_.heartbeat_s},
          state,
          [this](int64_t exchange, const std::string& hash) { return vouch(exchange, hash); }) {
  PELAGO_ASSERT(options_.lane < options_.shares.size(), "this site has a share");
  status_.incarnation = options_.hello.incarnation;
  status_.applied_epochs.assign(state_->fragments().size(), -1);
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
  shelf_.forget_idle(now_s);
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

MemberActions Member::on_line_lost(const std::string& why, double now_s) {
  now_s_ = now_s;
  const bool is_in_step = options_.schedule.num_fragments == 0;
  if (is_in_step && status_.lost_line.empty()) {
    status_.lost_line = why;
    status_changed_ = true;
  }
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
  status_.completed_steps = welcome.start_step;
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
                     .first_exchange = welcome.first_exchange,
                     .start_number = welcome.start_number,
                     .hash = welcome.checkpoint_hash,
                     .donors = welcome.donors});
    return;
  }
  begin_join();
}

// Told before the merge that lets the workers go on to the step from which they hold.
void Member::take_shares(const std::vector<ShareChange>& changes) {
  for (const ShareChange& change : changes) {
    if (change.data_step <= shares_.newest().data_step) continue;  // said again
    const Status added = shares_.add(change);
    if (!added) return refuse(kCoordinatorName, added.error().message);
    status_.shares_from = change.data_step;
    status_changed_ = true;
    act(TakeShares{.data_step = change.data_step, .sequences = change.sequences});
  }
}

void Member::on_step(int64_t completed_steps, double step_s) {
  status_.completed_steps = completed_steps;
  const int64_t data_step = completed_steps - 1 + data_shift();
  pace_.note(shares_.at(data_step).sequences[options_.lane], step_s);
}

void Member::on_left_out(int64_t completed_steps) {
  status_.completed_steps = completed_steps;
  ++status_.left_out_steps;
}

void Member::take(const std::string& from, const OthersAt& others) {
  if (from != kCoordinatorName || others.incarnation != status_.incarnation) {
    refuse(from, "where the others are, for another start");
    return;
  }
  if (status_.phase == SitePhase::kTraining) act(CatchUp{others.step});
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
  fetch_on();
  // With nothing under way nothing can have been missed. Where another coordinator may take over,
  // the answers show that this one is still it.
  // Of sites in step the coordinator has only this to tell how far they are.
  const bool is_quiet = status_.phase == SitePhase::kTraining && records_.empty() &&
                        fetcher_.is_idle() && !status_.wants_stop &&
                        options_.coordinators.size() < 2 && options_.schedule.num_fragments > 0;
  const double pause_s = (is_quiet ? kQuietHeartbeats : 1) * options_.heartbeat_s;
  if (status_changed_ || now_s_ - told_s_ >= pause_s) tell_status();
  return std::exchange(actions_, {});
}

}  // namespace pelago::sites
