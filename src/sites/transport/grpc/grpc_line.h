// One peer, seen from the sender: a window of frames and a few streams, each with a connection and
// a thread of its own, that share its chunks. All streams carry chunks of the same frame, so that a
// loss that stops one of them leaves the others at work.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "sites/transport/emulated_line.h"
#include "sites/transport/transport.h"

namespace grpc {
class ChannelCredentials;
}

namespace pelago::sites {

struct PeerLineOptions {
  std::string peer, address;                              // "HOST:PORT"
  std::string from;                                       // this end
  std::shared_ptr<grpc::ChannelCredentials> credentials;  // shared with gRPC
  uint32_t start = 0;  // of this process: all its sessions carry it (transport/frame_assembly.h)
  int num_streams = 4;
  double patience_s = 10;  // frames wait so long for a peer that cannot be reached
  std::optional<LineOptions> emulated;
  std::optional<double> bandwidth_mbit_s;   // of the line, where it is known
  uint32_t precious_kind_min = UINT32_MAX;  // frames from it on are said once only
  /// The peer could not be reached, and so many of the precious frames were given up. Called by
  /// threads of the line.
  std::function<void(int64_t num_lost)> on_lost;
};

class PeerLine {
 public:
  explicit PeerLine(const PeerLineOptions& options);
  ~PeerLine();

  /// False if the queue is full.
  bool push(Frame frame);
  /// Frames that the peer has not acknowledged.
  int64_t num_queued() const;
  /// rate_mbit_s and resent_bytes; the rest is zero.
  PeerTraffic measured() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pelago::sites
