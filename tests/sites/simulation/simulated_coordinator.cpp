#include "sites/simulation/simulated_coordinator.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

namespace pelago::sites {

namespace {

constexpr double kLookS = 0.25;  // so often a stand-by looks whether the seat is free
constexpr double kKeepS = 0.5;   // so often the one that leads keeps its lease
constexpr double kRetryS = 0.5;  // between two tries of one write
constexpr size_t kEventsTold = 40;

bool is_training(const DurableState& state) {
  const auto run = state.find("run");
  return run != state.end() && nlohmann::json::parse(run->second).at("phase") ==
                                   static_cast<int>(RoundMachine::RunPhase::kTraining);
}

// Without any, all sites may have died before there was a checkpoint: nobody asks for one then.
bool has_commits(const DurableState& state) {
  return std::any_of(state.begin(), state.end(), [](const auto& entry) {
    return entry.first.rfind("commit/", 0) == 0;
  });
}

}  // namespace

SimulatedCoordinator::SimulatedCoordinator(const RoundOptions& options,
                                           const std::string& endpoint,
                                           SimulatedStore& store,
                                           LoopbackNetwork& network,
                                           const Clock& clock,
                                           FaultyCode& faulty,
                                           const Rng& rng)
    : options_(options),
      endpoint_(endpoint),
      store_(&store),
      network_(&network),
      clock_(&clock),
      faulty_(&faulty),
      rng_(rng.fork(endpoint)) {
  come_up(clock.now_s());
}

// The only one starts at once; of several, whoever gets the seat.
void SimulatedCoordinator::come_up(double now_s) {
  if (!transport_) transport_ = network_->reopen_as(endpoint_, kCoordinatorName);
  if (!store_->is_shared()) return start();
  while (transport_->receive(0)) {
  }  // a stand-by answers nobody
  if (now_s - looked_s_ < kLookS || now_s < cut_s_) return;
  looked_s_ = now_s;
  seat_ = store_->try_lead(now_s);
  if (seat_ == 0) return;
  kept_s_ = now_s;
  num_written_ = 0;
  start();
}

void SimulatedCoordinator::start() {
  ++num_starts_;
  restart_s_ = -1;
  DurableState known = store_->state();
  RoundOptions options = options_;
  options.address = network_->address(endpoint_);
  // As a stand-by that takes over always says, and a person may.
  const bool says_resume =
      is_training(known) && (must_resume_ || (rng_.next_uniform() < 0.5 && has_commits(known)));
  options.resume = says_resume || (is_training(known) && store_->is_shared());
  options.takes_over = options.resume && !says_resume;
  if (is_started_over_) {
    options.resume = true;
    options.takes_over = false;
  }
  if (faulty_->coordinator_reads) faulty_->coordinator_reads(known);
  rounds_ = std::make_unique<RoundMachine>(options, known);
  for (const auto& [site, address] : rounds_->addresses()) transport_->set_address(site, address);
  note(fmt::format("{} leads, resume={}", endpoint_, options.resume));
  if (wants_stop_) carry_out(rounds_->request_stop(clock_->now_s()));
}

std::string SimulatedCoordinator::story() const {
  std::string text;
  for (size_t i = events_.size() - std::min(events_.size(), kEventsTold); i < events_.size(); ++i) {
    text += "\n  " + events_[i];
  }
  return text;
}

void SimulatedCoordinator::note(const std::string& what) {
  events_.push_back(fmt::format("{:.2f} {}", clock_->now_s(), what));
}

void SimulatedCoordinator::crash_after(int64_t num_said, double down_s) {
  if (!rounds_) return;
  says_left_ = num_said;
  down_s_ = down_s;
}

void SimulatedCoordinator::lose_power(double down_s) {
  must_resume_ = true;
  down_s_ = down_s;
  if (rounds_) return die();
  transport_.reset();
  network_->cut(endpoint_);
  restart_s_ = std::max(restart_s_, clock_->now_s() + down_s_);
}

void SimulatedCoordinator::forget_run() {
  num_refused_ += rounds_->num_refused();
  num_differing_ += rounds_->num_differing();
  rounds_.reset();
  outbox_ = Outbox();
  ticket_.reset();
  retry_s_.reset();
  says_left_ = -1;
  seat_ = 0;
}

void SimulatedCoordinator::die() {
  if (!store_->is_shared()) store_->lose_unsynced();
  note(endpoint_ + " dies");
  forget_run();
  transport_.reset();
  network_->cut(endpoint_);
  frozen_s_ = -1;
  restart_s_ = clock_->now_s() + down_s_;
}

// It knows that another may lead, says nothing any more, and stands by.
void SimulatedCoordinator::step_down() {
  note(endpoint_ + " is deposed");
  forget_run();
}

void SimulatedCoordinator::request_stop() {
  wants_stop_ = true;
  if (rounds_) carry_out(rounds_->request_stop(clock_->now_s()));
}

void SimulatedCoordinator::turn() {
  const double now_s = clock_->now_s();
  if (now_s < frozen_s_) return;
  if (!rounds_) {
    if (now_s >= restart_s_) come_up(now_s);
    return;
  }
  if (!is_kept(now_s)) return step_down();
  if (is_writing(now_s)) return;
  while (rounds_ && !ticket_) {
    const std::optional<Arrival> arrival = transport_->receive(0);
    if (!arrival) break;
    if (!arrival->frame) {
      carry_out(rounds_->on_lost(arrival->peer, now_s));
      continue;
    }
    Result<Message> message = decode(*arrival->frame);
    PELAGO_ASSERT(message, "simulated sites send what can be read");
    trace_ = Rng::mix(trace_ ^ Rng::mix(message->index() + 97 * arrival->frame->head.size()) ^
                      static_cast<uint64_t>(now_s * 1e6));
    const auto* hello = std::get_if<Hello>(&*message);
    if (hello != nullptr && rounds_->may_answer(arrival->peer, *hello)) {
      transport_->set_address(arrival->peer, hello->address);
    }
    if (faulty_->coordinator_hears && !faulty_->coordinator_hears(arrival->peer, *message))
      continue;
    carry_out(rounds_->on_message(arrival->peer, *message, now_s));
  }
  if (rounds_ && !ticket_) carry_out(rounds_->on_tick(now_s));
  if (rounds_ && rounds_->phase() != RoundMachine::RunPhase::kGathering) must_resume_ = false;
  if (rounds_ && says_left_ == 0) die();
}

bool SimulatedCoordinator::is_kept(double now_s) {
  if (!store_->is_shared() || now_s - kept_s_ < kKeepS || now_s < cut_s_) return true;
  kept_s_ = now_s;
  return store_->keep(seat_, now_s);
}

// A write is waited for, as Coordinator does, until it has an answer or has taken too long.
bool SimulatedCoordinator::is_writing(double now_s) {
  while (ticket_ || (retry_s_ && now_s >= *retry_s_)) {
    if (!ticket_) {
      submit();
      continue;
    }
    const std::optional<Status> written = store_->answer(*ticket_, now_s);
    if (!written) return true;
    ticket_.reset();
    retry_s_.reset();
    if (*written) {
      ++num_written_;
      tell(outbox_.take_first());
      if (!rounds_) return true;
      if (outbox_.is_waiting()) submit();
    } else if (written->error().code == ErrorCode::kRefused) {
      step_down();
      return true;
    } else {
      retry_s_ = now_s + kRetryS;
    }
  }
  return false;
}

void SimulatedCoordinator::carry_out(RoundOutput output) {
  if (faulty_->says_before_written && !output.writes.empty()) {
    tell(output);
    if (!rounds_) return;
    output = {.writes = output.writes, .commits = {}, .events = {}, .messages = {}};
  }
  if (const std::optional<RoundOutput> now = outbox_.put(std::move(output))) tell(*now);
  if (rounds_ && outbox_.is_waiting() && !ticket_ && !retry_s_) submit();
}

void SimulatedCoordinator::submit() {
  SimulatedStore::Request request{.seat = seat_,
                                  .number = num_written_ + 1,
                                  .writes = outbox_.first().writes,
                                  .kept = outbox_.first().writes};
  if (faulty_->coordinator_writes) faulty_->coordinator_writes(request.kept);
  const bool is_instant = !store_->is_shared() && store_->delay_s() == 0 && says_left_ < 0;
  if (!is_instant) {
    ticket_ = store_->submit(std::move(request), clock_->now_s() >= cut_s_, clock_->now_s());
    return;
  }
  store_->write_now(request);
  ++num_written_;
  tell(outbox_.take_first());
}

void SimulatedCoordinator::tell(const RoundOutput& output) {
  for (const auto& [name, fields] : output.events) note(name + " " + fields);
  for (const Commit& commit : output.commits) {
    note(fmt::format(
        "commit {} epoch {} by {}", commit.exchange, commit.epoch, commit.members.size()));
  }
  for (const auto& [to, message] : output.messages) {
    if (says_left_ == 0) return die();
    if (says_left_ > 0) --says_left_;
    Message said = message;
    if (faulty_->coordinator_says && !faulty_->coordinator_says(to, said)) continue;
    transport_->send(to, encode(kCoordinatorName, std::move(said)));
  }
}

}  // namespace pelago::sites
