#include "sites/grpc_transport.h"

#include <grpc/support/log.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <mutex>
#include <random>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/threads.h"
#include "sites/join/grpc_credentials.h"
#include "sites/transport/grpc/grpc_line.h"
#include "sites/transport/grpc/grpc_receiver.h"

namespace pelago::sites {

namespace {

constexpr size_t kInboxFramesMax = 1024;

LineIdentity identity_of(const GrpcTransportOptions& options) {
  for (const std::string& name :
       {std::string("ca.pem"), options.name + ".pem", options.name + ".key"}) {
    try {
      read_text_file(options.certs_dir / name);
    } catch (const Failure& failure) {
      fail_usage("{}; make certificates with pelago certs", failure.what());
    }
  }
  return {.certs_dir = options.certs_dir, .name = options.name};
}

void log_of_grpc(gpr_log_func_args* args) { log_debug("grpc {}", args->message); }

}  // namespace

struct GrpcTransport::Impl {
  explicit Impl(const GrpcTransportOptions& given)
      : options(given),
        identity(identity_of(given)),
        credentials(line_channel_credentials(identity)),
        inbox(kInboxFramesMax),
        receiver(inbox,
                 {.frame_bytes_max = given.frame_bytes_max,
                  .handshake_s = given.handshake_s,
                  .fast_kind_min = given.fast_kind_min,
                  .on_fast_frame = given.on_fast_frame}) {}

  GrpcTransportOptions options;
  LineIdentity identity;
  std::shared_ptr<grpc::ChannelCredentials> credentials;  // gRPC's own way to hold them
  BoundedQueue<Arrival> inbox;
  Receiver receiver;
  uint32_t start = std::random_device{}();
  std::unique_ptr<grpc::Server> server;
  int port = 0;
  mutable std::mutex peers_mutex;  // guards the three below
  std::map<std::string, std::string> addresses;
  std::map<std::string, std::unique_ptr<PeerLine>> lines;
  std::map<std::string, PeerTraffic> traffic;
  // Not through the inbox: a sending thread must never wait for the one that reads it.
  std::mutex lost_mutex;                      // guards lost_peers
  std::map<std::string, int64_t> lost_peers;  // with what was given up of what is said once
};

GrpcTransport::GrpcTransport(const GrpcTransportOptions& options)
    : impl_(std::make_unique<Impl>(options)) {
  gpr_set_log_function(log_of_grpc);
  grpc::ServerBuilder builder;
  // Who comes to the door has no certificate; the line itself refuses a peer without a name.
  builder.AddListeningPort(options.listen,
                           line_server_credentials(impl_->identity, options.door != nullptr),
                           &impl_->port);
  impl_->receiver.join(builder);
  if (options.door != nullptr) builder.RegisterService(options.door);
  impl_->server = builder.BuildAndStart();
  if (!impl_->server || impl_->port == 0) {
    fail_usage(
        "{}: cannot listen on {}: the port is taken or the address is not of this machine; "
        "choose another",
        options.name,
        options.listen);
  }
}

GrpcTransport::~GrpcTransport() {
  impl_->inbox.close();
  {
    const std::lock_guard lock(impl_->peers_mutex);
    impl_->lines.clear();
  }
  impl_->server->Shutdown(std::chrono::system_clock::now());
}

std::string GrpcTransport::address() const {
  const std::string& listen = impl_->options.listen;
  return fmt::format("{}:{}", listen.substr(0, listen.rfind(':')), impl_->port);
}

void GrpcTransport::set_address(const std::string& peer, const std::string& address) {
  const std::lock_guard lock(impl_->peers_mutex);
  std::string& known = impl_->addresses[peer];
  if (known == address) return;
  known = address;
  PeerLineOptions line;
  line.peer = peer;
  line.address = address;
  line.from = impl_->options.name;
  line.start = impl_->start;
  line.credentials = impl_->credentials;
  line.patience_s = impl_->options.patience_s;
  // Nothing large goes to the coordinator or comes from it.
  const bool is_to_site = peer != kCoordinatorName && line.from != kCoordinatorName;
  line.num_streams = is_to_site ? impl_->options.num_streams : 1;
  if (impl_->options.emulated_line) line.emulated = impl_->options.emulated_line(peer);
  if (is_to_site && impl_->options.bandwidth_mbit_s) {
    line.bandwidth_mbit_s = impl_->options.bandwidth_mbit_s(peer);
  }
  line.precious_kind_min = impl_->options.fast_kind_min;
  line.on_lost = [this, peer](int64_t num_lost) {
    const std::lock_guard lost_lock(impl_->lost_mutex);
    impl_->lost_peers[peer] += num_lost;
  };
  impl_->lines[peer] = std::make_unique<PeerLine>(line);
}

bool GrpcTransport::send(const std::string& peer, Frame frame) {
  const std::lock_guard lock(impl_->peers_mutex);
  const auto line = impl_->lines.find(peer);
  if (line == impl_->lines.end()) return false;
  const int64_t sent_bytes = frame.num_bytes();
  const auto sent_payload_bytes = static_cast<int64_t>(frame.payload.size());
  if (!line->second->push(std::move(frame))) return false;
  PeerTraffic& traffic = impl_->traffic[peer];
  ++traffic.sent_frames;
  traffic.sent_bytes += sent_bytes;
  traffic.sent_payload_bytes += sent_payload_bytes;
  return true;
}

std::optional<Arrival> GrpcTransport::receive(double timeout_s) {
  {
    const std::lock_guard lock(impl_->lost_mutex);
    if (!impl_->lost_peers.empty()) {
      const auto lost = impl_->lost_peers.extract(impl_->lost_peers.begin());
      return Arrival{.peer = lost.key(), .frame = {}, .num_lost = lost.mapped()};
    }
  }
  return impl_->inbox.pop_for(timeout_s);
}

int64_t GrpcTransport::num_queued(const std::string& peer) const {
  const std::lock_guard lock(impl_->peers_mutex);
  const auto line = impl_->lines.find(peer);
  return line == impl_->lines.end() ? 0 : line->second->num_queued();
}

std::map<std::string, PeerTraffic> GrpcTransport::traffic() const {
  const std::lock_guard lock(impl_->peers_mutex);
  std::map<std::string, PeerTraffic> traffic = impl_->traffic;
  for (auto& [peer, known] : traffic) {
    const PeerTraffic measured = impl_->lines.at(peer)->measured();
    known.resent_bytes = measured.resent_bytes;
    known.rate_mbit_s = measured.rate_mbit_s;
  }
  return traffic;
}

void GrpcTransport::flush(double timeout_s) {
  const double deadline_s = steady_now_s() + timeout_s;
  const auto is_busy = [&] {
    const std::lock_guard lock(impl_->peers_mutex);
    return std::any_of(impl_->lines.begin(), impl_->lines.end(), [](const auto& line) {
      return line.second->num_queued() > 0;
    });
  };
  while (is_busy() && steady_now_s() < deadline_s) sleep_until_s(steady_now_s() + 0.002);
}

}  // namespace pelago::sites
