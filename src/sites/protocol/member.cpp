// Where a site stands in the run: greeting, start, stop, and what it lacks. The exchanges
// themselves are in member_exchanges.cpp.
#include "sites/protocol/member.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"

namespace pelago::sites {

Member::Member(MemberOptions options, GlobalState& state)
    : options_(std::move(options)),
      state_(&state),
      shelf_(state),
      fetcher_(
          {.site = options_.site,
           .address = options_.hello.address,
           .heartbeat_s = options_.heartbeat_s},
          state,
          [this](int64_t exchange, const std::string& hash) { return vouch(exchange, hash); }) {
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
  if (welcome.mode != StartMode::kJoin) {
    status_.phase = SitePhase::kStarting;
    act(StartWorkers{
        .mode = welcome.mode, .step = welcome.start_step, .data_step = welcome.data_step});
    return;
  }
  begin_join();
}

void Member::take(const std::string& from, const Refused& refused) {
  if (from != kCoordinatorName || refused.incarnation != status_.incarnation) {
    refuse(from, "refusal of another start");
    return;
  }
  act(Leave{.exit_code = refused.exit_code, .reason = refused.reason});
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

void Member::take(const std::string& from, const Alive&) {
  if (from != kCoordinatorName) refuse(from, "answer to a heartbeat");
}

void Member::refuse(const std::string& from, const std::string& why) {
  ++status_.num_refused;
  log_debug("refused from={} what=\"{}\"", from, why);
}

void Member::tell_status() {
  if (!welcome_ || has_left_) return;
  ++status_.sequence;
  status_.applied = state_->applied();
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
  if (status_changed_ || now_s_ - told_s_ >= options_.heartbeat_s) tell_status();
  return std::exchange(actions_, {});
}

}  // namespace pelago::sites
