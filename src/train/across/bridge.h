// A worker's way to the ranks of other sites: through its agent, which carries messages over the
// line. A thread writes what was given, most urgent channel first, another one reads all the time,
// so neither the agent nor a peer ever waits for a worker that computes. Messages of one sender,
// channel and tag arrive in the order they were sent.
#pragma once

#include <array>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <tuple>

#include "train/across/bridge_socket.h"

namespace pelago::train {

/// Whose message, and which.
struct BridgeKey {
  BridgeChannel channel = BridgeChannel::kControl;
  int rank = 0;  // the other one
  uint32_t tag = 0;
  auto operator<=>(const BridgeKey&) const = default;
};

class Bridge {
 public:
  /// rank: of this worker, counted through all sites.
  Bridge(BridgeSocket socket, int rank, double timeout_s = 120);
  ~Bridge();
  Bridge(const Bridge&) = delete;
  Bridge& operator=(const Bridge&) = delete;

  int rank() const { return rank_; }
  double timeout_s() const { return timeout_s_; }

  /// Sends what the bytes are now; returns at once. Any thread.
  void send(const BridgeKey& to, std::span<const std::byte> bytes);
  /// The same without a copy: owner keeps the bytes, which nobody changes, until they have left.
  void send(const BridgeKey& to,
            std::span<const std::byte> bytes,
            std::shared_ptr<const void> owner);
  /// Waits for the next message of this key, which has as many bytes. Returns when its last part
  /// came, by steady_now_s(). Throws Failure naming the rank if it is silent for timeout_s, or with
  /// the agent's words if the line is lost.
  double receive(const BridgeKey& from, std::span<std::byte> bytes);

 private:
  struct Outgoing {
    BridgeHeader header;                // of the next part
    std::span<const std::byte> bytes;   // left to send
    std::shared_ptr<const void> owner;  // of the bytes, with whoever gave them
  };
  struct Part {
    std::string bytes;
    double arrived_s = 0;
  };
  static constexpr size_t kChannels = 5;

  void write(const std::stop_token& stop);
  void read();

  BridgeSocket socket_;
  const int rank_;
  const double timeout_s_;
  std::mutex outgoing_mutex_;  // guards outgoing_
  std::condition_variable_any given_;
  std::array<std::deque<Outgoing>, kChannels> outgoing_;  // by channel
  std::mutex parts_mutex_;                                // guards the two below
  std::condition_variable arrived_;
  std::map<BridgeKey, std::deque<Part>> parts_;
  std::string failure_;           // empty while all is well
  std::jthread writer_, reader_;  // last: they use the members above
};

}  // namespace pelago::train
