// The receiving end of all lines: one thread a stream, one assembly a peer. A peer is believed to
// be who its certificate says, and nobody else.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "base/threads.h"
#include "sites/transport/transport.h"

namespace grpc {
class Service;
class ServerBuilder;
}  // namespace grpc

namespace pelago::sites {

inline constexpr int kMessageBytesMax = 4 << 20;

struct ReceiverOptions {
  int64_t frame_bytes_max = 64 << 20;
  int peer_streams_max = 32;  // of one peer; more are refused
  double handshake_s = 5;     // a connection that has not shown its certificate by then is closed
  uint32_t fast_kind_min = UINT32_MAX;  // frames of these kinds do not go through the inbox
  std::function<bool(Frame)> on_fast_frame = {};
};

class Receiver {
 public:
  /// inbox outlives the receiver and is closed before it.
  Receiver(BoundedQueue<Arrival>& inbox, const ReceiverOptions& options);
  ~Receiver();

  /// Adds the service, with the windows and bounds that it needs; before the server is built.
  void join(grpc::ServerBuilder& builder);
  /// Chunks that had come before, of all peers: resent after a break, or replayed.
  int64_t num_repeated() const;

 private:
  class Service;
  std::unique_ptr<Service> service_;
};

}  // namespace pelago::sites
