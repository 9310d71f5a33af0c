// What comes over the line for a site's workers, in the order in which it was sent, as a pure state
// machine: the relay of an agent has one, and so has a simulated site.
//
// Every start of the sites in step has a number. Frames of an earlier start are dropped, those of a
// later one kept until this site's workers have started, too. Frames from a site count upwards, so
// that one that is missing, because a line was given up, is an end and not a hang.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "sites/transport/transport.h"
#include "train/across/bridge_socket.h"

namespace pelago::sites {

/// Of frames for workers: beyond every message of the protocol.
inline constexpr uint32_t kRelayKind = 1 << 16;

struct RelayHead {
  int64_t start_number = 0;
  uint64_t sequence = 0;  // of frames from one site to another
  train::BridgeHeader header;
};

Frame relay_frame(const std::string& from, const RelayHead& head, std::string part);
/// False: it is none of a relay.
bool read_relay_head(const Frame& frame, RelayHead& head);

/// For a worker of this site.
struct RelayPart {
  train::BridgeHeader header;
  std::string bytes;
};

class RelayOrder {
 public:
  /// The workers have started. Returns what had come for them before.
  std::vector<RelayPart> start(int64_t start_number);
  /// A frame with a relay's head. Returns what the workers are to be given now.
  std::vector<RelayPart> take(Frame frame);
  int64_t start_number() const { return start_number_; }
  /// Why nothing more is given to the workers; empty while all is well.
  const std::string& failure() const { return failure_; }

 private:
  static constexpr size_t kHeldMax = 1024;  // frames: of a start that this site has yet to hear of

  int64_t start_number_ = -1;               // -1: not started
  std::map<std::string, uint64_t> coming_;  // the next sequence, by site
  std::deque<Frame> held_;
  std::string failure_;
};

}  // namespace pelago::sites
