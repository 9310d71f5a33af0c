// The real line between sites: frames as chunks over several gRPC streams with mutual TLS to each
// peer. A chunk is acknowledged by itself: a frame that a lost connection cuts goes on from there.
// TLS 1.3 authenticates every record from agent to agent, where frames are made and used, so that
// no other authentication of a frame is needed; a checksum over each chunk and its place guards the
// way through memory on both sides. Where a line is emulated, each frame is held back until it
// would have arrived. Measured over packets lost and delayed: bench_goodput.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "sites/transport/emulated_line.h"
#include "sites/transport/transport.h"

namespace grpc {
class Service;
}

namespace pelago::sites {

struct GrpcTransportOptions {
  std::string name;                 // this end: a site, or the coordinator
  std::filesystem::path certs_dir;  // ca.pem, NAME.pem, NAME.key
  std::string listen = "127.0.0.1:0";
  int64_t frame_bytes_max = 64 << 20;  // larger frames are refused before memory is taken
  int num_streams = 4;     // to each site: a loss stops one of them; more than 8 gains nothing
  double patience_s = 10;  // frames wait so long for a peer that is gone: longer than most breaks
  double handshake_s = 5;  // a connection without a certificate by then is closed
  /// The line to a peer, if it is to be emulated.
  std::function<std::optional<LineOptions>(const std::string& peer)> emulated_line;
  /// The rate of the line to a peer where the plan knows it: it is not filled faster than that.
  std::function<std::optional<double>(const std::string& peer)> bandwidth_mbit_s;
  /// Frames of this kind or above are handed over as they come, on the thread that received them,
  /// and pass by receive(): what must not wait for whoever reads the rest. It returns false to
  /// refuse one. Whoever sends one says it once: what is given up of them is told by receive().
  uint32_t fast_kind_min = UINT32_MAX;
  std::function<bool(Frame)> on_fast_frame = {};
  /// Answers callers that have no certificate yet; outlives the transport. Null: there are none.
  grpc::Service* door = nullptr;
};

class GrpcTransport final : public Transport {
 public:
  /// Throws Failure (exit 2) if a certificate is missing or the port is taken.
  explicit GrpcTransport(const GrpcTransportOptions& options);
  ~GrpcTransport() override;

  /// "HOST:PORT" with the port that was really taken.
  std::string address() const;

  void set_address(const std::string& peer, const std::string& address) override;
  bool send(const std::string& peer, Frame frame) override;
  std::optional<Arrival> receive(double timeout_s) override;
  int64_t num_queued(const std::string& peer) const override;
  std::map<std::string, PeerTraffic> traffic() const override;
  /// Waits until every queue is empty, at most timeout_s: last words before the end.
  void flush(double timeout_s);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pelago::sites
