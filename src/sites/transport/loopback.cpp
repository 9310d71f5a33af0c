#include "sites/transport/loopback.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace pelago::sites {

class LoopbackTransport final : public Transport {
 public:
  LoopbackTransport(LoopbackNetwork& network, std::string name, std::string spoken_name)
      : network_(&network), name_(std::move(name)), spoken_name_(std::move(spoken_name)) {}

  void set_address(const std::string& peer, const std::string& address) override {
    addresses_[peer] = address;
  }

  bool send(const std::string& peer, Frame frame) override {
    const auto address = addresses_.find(peer);
    if (address == addresses_.end()) return false;
    PeerTraffic& traffic = traffic_[peer];
    ++traffic.sent_frames;
    traffic.sent_bytes += frame.num_bytes();
    traffic.sent_payload_bytes += static_cast<int64_t>(frame.payload.size());
    frame.from = spoken_name_;
    network_->put(name_, address->second, {.peer = spoken_name_, .frame = std::move(frame)});
    return true;
  }
  std::optional<Arrival> receive(double /*timeout_s*/) override { return network_->take(name_); }
  int64_t num_queued(const std::string&) const override { return 0; }
  std::map<std::string, PeerTraffic> traffic() const override { return traffic_; }

 private:
  LoopbackNetwork* network_;
  std::string name_, spoken_name_;
  std::map<std::string, std::string> addresses_;
  std::map<std::string, PeerTraffic> traffic_;
};

LoopbackNetwork::LoopbackNetwork(const LoopbackOptions& options, const Clock& clock)
    : options_(options), clock_(&clock), rng_(Rng(options.seed).fork("loopback")) {}

std::unique_ptr<Transport> LoopbackNetwork::open(const std::string& name) {
  inboxes_[name].clear();
  ++num_opened_[name];
  return std::make_unique<LoopbackTransport>(*this, name, name);
}

std::unique_ptr<Transport> LoopbackNetwork::reopen_as(const std::string& name,
                                                      const std::string& spoken_name) {
  inboxes_[name].clear();
  num_opened_.try_emplace(name, 1);
  if (spoken_name != name) spoken_names_[name] = spoken_name;
  return std::make_unique<LoopbackTransport>(*this, name, spoken_name);
}

void LoopbackNetwork::set_blocked(const std::string& from, const std::string& to, bool is_blocked) {
  if (is_blocked) {
    blocked_.emplace(from, to);
  } else {
    blocked_.erase({from, to});
  }
}

void LoopbackNetwork::cut(const std::string& name) {
  inboxes_.erase(name);
  const auto spoken = spoken_names_.find(name);
  const std::string& peer = spoken == spoken_names_.end() ? name : spoken->second;
  for (auto& [receiver, inbox] : inboxes_) {
    std::erase_if(inbox, [&](const Flight& flight) { return flight.from == name; });
    inbox.push_back({.arrival_s = clock_->now_s(),
                     .number = num_flights_++,
                     .from = name,
                     .to = receiver,
                     .arrival = {.peer = peer, .frame = {}}});
  }
}

std::string LoopbackNetwork::address(const std::string& name) const {
  const auto opened = num_opened_.find(name);
  return opened == num_opened_.end() ? "" : fmt::format("{}:{}", name, opened->second);
}

void LoopbackNetwork::put(const std::string& from, const std::string& at, Arrival arrival) {
  const std::string to = at.substr(0, at.rfind(':'));
  const auto inbox = inboxes_.find(to);
  const bool is_lost =
      rng_.next_uniform() < options_.loss || at != address(to) || blocked_.contains({from, to});
  if (inbox == inboxes_.end() || is_lost) {
    ++num_lost_;
    return;
  }
  const bool is_doubled = rng_.next_uniform() < options_.doubling;
  num_doubled_ += is_doubled ? 1 : 0;
  for (int copy = 0; copy < (is_doubled ? 2 : 1); ++copy) {
    const double delay_s = options_.delay_s + options_.jitter_s * rng_.next_uniform();
    inbox->second.push_back({.arrival_s = clock_->now_s() + delay_s,
                             .number = num_flights_++,
                             .from = from,
                             .to = to,
                             .arrival = arrival});
  }
}

std::optional<Arrival> LoopbackNetwork::take(const std::string& name) {
  const auto inbox = inboxes_.find(name);
  if (inbox == inboxes_.end() || inbox->second.empty()) return std::nullopt;
  std::vector<Flight>& flights = inbox->second;
  const auto first = std::min_element(
      flights.begin(), flights.end(), [](const Flight& a, const Flight& b) { return b > a; });
  if (first->arrival_s > clock_->now_s()) return std::nullopt;
  Arrival arrival = std::move(first->arrival);
  flights.erase(first);
  return arrival;
}

}  // namespace pelago::sites
