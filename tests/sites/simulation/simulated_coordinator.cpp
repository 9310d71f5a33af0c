#include "sites/simulation/simulated_coordinator.h"

#include <algorithm>
#include <utility>

namespace pelago::sites {

SimulatedCoordinator::SimulatedCoordinator(const RoundOptions& options,
                                           double disk_s,
                                           LoopbackNetwork& network,
                                           const Clock& clock,
                                           FaultyCode& faulty,
                                           Truth& truth,
                                           const Rng& rng)
    : options_(options),
      disk_s_(disk_s),
      network_(&network),
      clock_(&clock),
      faulty_(&faulty),
      truth_(&truth),
      rng_(rng.fork("coordinator")) {
  start();
}

void SimulatedCoordinator::start() {
  ++num_starts_;
  restart_s_ = -1;
  transport_ = network_->reopen(kCoordinatorName);
  DurableState known = disk_;
  if (faulty_->coordinator_reads) faulty_->coordinator_reads(known);
  rounds_ = std::make_unique<RoundMachine>(options_, known);
  for (const auto& [site, address] : rounds_->addresses()) transport_->set_address(site, address);
  if (wants_stop_) carry_out(rounds_->request_stop(clock_->now_s()));
}

std::string SimulatedCoordinator::story() const {
  constexpr size_t kLast = 40;
  std::string text;
  for (size_t i = events_.size() - std::min(events_.size(), kLast); i < events_.size(); ++i) {
    text += "\n  " + events_[i];
  }
  return text;
}

void SimulatedCoordinator::crash_after(int64_t num_said, double down_s) {
  if (!rounds_) return;
  says_left_ = num_said;
  down_s_ = down_s;
}

void SimulatedCoordinator::die() {
  if (pending_ && rng_.next_uniform() < 0.5) {
    for (const StateWrite& write : pending_->writes) apply(write, disk_);
    truth_->on_writes(pending_->writes);
  }
  pending_.reset();
  num_refused_ += rounds_->num_refused();
  num_differing_ += rounds_->num_differing();
  events_.push_back(fmt::format("{:.2f} the coordinator dies", clock_->now_s()));
  rounds_.reset();
  transport_.reset();
  network_->cut(kCoordinatorName);
  says_left_ = -1;
  frozen_s_ = -1;
  restart_s_ = clock_->now_s() + down_s_;
}

void SimulatedCoordinator::request_stop() {
  wants_stop_ = true;
  if (rounds_) carry_out(rounds_->request_stop(clock_->now_s()));
}

void SimulatedCoordinator::turn() {
  const double now_s = clock_->now_s();
  if (!rounds_) {
    if (now_s >= restart_s_) start();
    return;
  }
  if (now_s < frozen_s_) return;
  if (pending_) {
    if (now_s < disk_done_s_) return;
    finish(*std::exchange(pending_, std::nullopt));
  }
  while (rounds_ && !pending_) {
    const std::optional<Arrival> arrival = transport_->receive(0);
    if (!arrival) break;
    if (!arrival->frame) {
      carry_out(rounds_->on_lost(arrival->peer, now_s));
      continue;
    }
    Result<Message> message = decode(*arrival->frame);
    if (!message) return truth_->complain(message.error().message);
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
  if (rounds_ && !pending_) carry_out(rounds_->on_tick(now_s));
  if (rounds_ && says_left_ == 0) die();
}

void SimulatedCoordinator::carry_out(RoundOutput output) {
  if (output.writes.empty()) return finish(std::move(output));
  if (disk_s_ == 0 && says_left_ < 0) return finish(std::move(output));
  disk_done_s_ = clock_->now_s() + disk_s_ * rng_.next_uniform();
  if (pending_) {  // a stop was asked for meanwhile
    finish(*std::exchange(pending_, std::nullopt));
    if (!rounds_) return;
  }
  pending_ = std::move(output);
}

void SimulatedCoordinator::finish(RoundOutput output) {
  for (const auto& [name, fields] : output.events) {
    events_.push_back(fmt::format("{:.2f} {} {}", clock_->now_s(), name, fields));
  }
  for (const Commit& commit : output.commits) {
    events_.push_back(fmt::format("{:.2f} commit {} epoch {} by {}",
                                  clock_->now_s(),
                                  commit.exchange,
                                  commit.epoch,
                                  commit.members.size()));
  }
  truth_->on_writes(output.writes);
  std::vector<StateWrite> writes = output.writes;
  if (faulty_->coordinator_writes) faulty_->coordinator_writes(writes);
  for (const StateWrite& write : writes) apply(write, disk_);
  for (auto& [to, message] : output.messages) {
    if (says_left_ == 0) return die();
    if (says_left_ > 0) --says_left_;
    if (faulty_->coordinator_says && !faulty_->coordinator_says(to, message)) continue;
    transport_->send(to, encode(kCoordinatorName, message));
  }
}

}  // namespace pelago::sites
