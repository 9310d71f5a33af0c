// How sites reach each other: frames into a queue for each peer, frames and lost connections out.
// What a caller may rely on: frames to one peer arrive in order, or not at all when the connection
// breaks; a frame that arrives carries the true name of its sender and is whole. Nothing else: a
// frame may be lost, and a sender that resends makes duplicates. The protocol above is built for
// that, which is why the real line, the emulated one and the simulated one differ by a constructor.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

namespace pelago::sites {

/// The name under which the coordinator speaks; no site may carry it.
inline constexpr const char* kCoordinatorName = "coordinator";

/// One message on its way. head: JSON; payload: raw little-endian values, may be empty.
struct Frame {
  std::string from;
  uint32_t kind = 0;
  std::string head;
  std::string payload;
  int64_t num_bytes() const { return static_cast<int64_t>(head.size() + payload.size()) + 64; }
};

/// A frame that came, or the news that the connection to or from peer broke.
struct Arrival {
  std::string peer;
  std::optional<Frame> frame;  // absent: the connection was lost
  // With it, frames for workers that were given up because the peer could not be reached for too
  // long: nobody says those again.
  int64_t num_lost = 0;
};

struct PeerTraffic {
  int64_t sent_frames = 0;
  int64_t sent_bytes = 0;          // whole frames
  int64_t sent_payload_bytes = 0;  // of these: payload
  int64_t resent_bytes = 0;        // payload that was on its way when a connection broke
  double rate_mbit_s = 0;          // payload acknowledged while frames waited; 0: not known yet
};

class Transport {
 public:
  virtual ~Transport() = default;
  /// Where to reach a peer, "HOST:PORT". A new address replaces the old connection.
  virtual void set_address(const std::string& peer, const std::string& address) = 0;
  /// Queues the frame; never waits. False if the peer's address is unknown or its queue is full:
  /// the frame is then gone.
  virtual bool send(const std::string& peer, Frame frame) = 0;
  /// The next arrival, or nothing within timeout_s.
  virtual std::optional<Arrival> receive(double timeout_s) = 0;
  /// Frames that the peer may not have yet: whoever would resend looks here first.
  virtual int64_t num_queued(const std::string& peer) const = 0;
  virtual std::map<std::string, PeerTraffic> traffic() const = 0;
};

}  // namespace pelago::sites
