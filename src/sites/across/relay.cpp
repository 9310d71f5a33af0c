#include "sites/across/relay.h"

#include <poll.h>

#include <span>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "plan/across/joint.h"

namespace pelago::sites {

namespace {

constexpr int kPollMs = 100;           // how soon a request to stop is seen
constexpr double kFullPauseS = 0.002;  // a line's queue holds a second of its rate or more

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

}  // namespace

Relay::Relay(const plan::Plan& plan, size_t site_idx)
    : plan_(&plan), site_idx_(site_idx), first_rank_(plan::first_joint_rank(plan, site_idx)) {}

Relay::~Relay() { stop(); }

void Relay::start(int64_t start_number,
                  std::vector<train::BridgeSocket> workers,
                  Transport& transport) {
  const std::lock_guard lock(coming_mutex_);
  workers_ = std::move(workers);
  transport_ = &transport;
  start_number_ = start_number;
  thread_ = std::jthread([this](const std::stop_token& stop) { carry(stop); });
  deliver(order_.start(start_number));
}

void Relay::stop() {
  thread_.request_stop();
  // Not under the mutex: somebody may be writing to a worker that reads no more.
  for (train::BridgeSocket& worker : workers_) worker.shut_down();
  if (thread_.joinable()) thread_.join();
}

void Relay::carry(const std::stop_token& stop) {
  try {
    carry_all(stop);
  } catch (const Failure& failure) {  // a worker names a rank that there is not
    const std::lock_guard lock(coming_mutex_);
    fail_workers(failure.what());
  }
}

void Relay::carry_all(const std::stop_token& stop) {
  std::vector<pollfd> watched;
  for (const train::BridgeSocket& worker : workers_) {
    watched.push_back({.fd = worker.descriptor(), .events = POLLIN, .revents = 0});
  }
  train::BridgeHeader header;
  std::string part;
  while (!stop.stop_requested()) {
    if (::poll(watched.data(), watched.size(), kPollMs) <= 0) continue;
    for (size_t i = 0; i < watched.size(); ++i) {
      if (watched[i].revents == 0) continue;
      if (!workers_[i].read(header, part)) {
        watched[i].fd = -1;  // its supervisor deals with its end
        continue;
      }
      header.from_rank = first_rank_ + static_cast<int>(i);
      send_on(header, std::move(part), stop);
      part.clear();
    }
  }
}

void Relay::send_on(const train::BridgeHeader& header,
                    std::string part,
                    const std::stop_token& stop) {
  const size_t to_site = plan::site_of_joint_rank(*plan_, header.to_rank);
  if (to_site == site_idx_) {
    const std::lock_guard lock(coming_mutex_);
    write_to(header.to_rank, header, part);
    return;
  }
  const Frame frame = relay_frame(
      plan_->sites[site_idx_].name,
      {.start_number = start_number_, .sequence = next_sent_[to_site]++, .header = header},
      std::move(part));
  const std::string& to = plan_->sites[to_site].name;
  while (!transport_->send(to, frame) && !stop.stop_requested()) {
    sleep_until_s(steady_now_s() + kFullPauseS);
  }
}

bool Relay::is_good(const std::string& from, const RelayHead& head, size_t part_bytes) const {
  const auto num_own = static_cast<int>(plan_->sites[site_idx_].devices.size());
  const int place = head.header.to_rank - first_rank_;
  if (place < 0 || place >= num_own || head.header.num_bytes != part_bytes) return false;
  if (part_bytes > train::kBridgePartBytes || head.header.from_rank < 0) return false;
  if (head.header.channel == train::BridgeChannel::kFailure ||
      head.header.channel > train::BridgeChannel::kState) {
    return false;
  }
  size_t num_ranks = 0;
  for (const plan::SitePlan& site : plan_->sites) num_ranks += site.devices.size();
  if (static_cast<size_t>(head.header.from_rank) >= num_ranks) return false;
  return plan_->sites[plan::site_of_joint_rank(*plan_, head.header.from_rank)].name == from;
}

bool Relay::take(Frame frame) {
  RelayHead head;
  if (!read_relay_head(frame, head)) return false;
  if (!is_good(frame.from, head, frame.payload.size())) return false;
  const std::lock_guard lock(coming_mutex_);
  deliver(order_.take(std::move(frame)));
  return true;
}

std::string Relay::failure() {
  const std::lock_guard lock(coming_mutex_);
  return order_.failure();
}

// Of what a line has lost its agent tells the coordinator, which begins all sites again: workers
// that gave up first would take the agent with them.
void Relay::deliver(const std::vector<RelayPart>& parts) {
  for (const RelayPart& part : parts) write_to(part.header.to_rank, part.header, part.bytes);
}

void Relay::write_to(int rank, const train::BridgeHeader& header, const std::string& part) {
  // A worker that is gone is its supervisor's business.
  workers_[static_cast<size_t>(rank - first_rank_)].write(header, bytes_of(part));
}

void Relay::fail_workers(const std::string& why) {
  if (std::exchange(has_failed_, true)) return;
  log_warn("{}", why);
  for (size_t i = 0; i < workers_.size(); ++i) {
    train::BridgeHeader header{.to_rank = first_rank_ + static_cast<int>(i),
                               .channel = train::BridgeChannel::kFailure};
    header.num_bytes = why.size();
    workers_[i].write(header, bytes_of(why));
  }
}

}  // namespace pelago::sites
