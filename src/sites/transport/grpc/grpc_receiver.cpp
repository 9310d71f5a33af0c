#include "sites/transport/grpc/grpc_receiver.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "sites/transport/frame_assembly.h"
#include "wire.grpc.pb.h"

namespace pelago::sites {

class Receiver::Service final : public wire::Line::Service {
 public:
  Service(BoundedQueue<Arrival>& inbox, const ReceiverOptions& options)
      : inbox_(&inbox), options_(options) {
    std::random_device device;
    number_ = (uint64_t{device()} << 32U) | device() | 1U;
  }

  grpc::Status Deliver(grpc::ServerContext* context,
                       grpc::ServerReaderWriter<wire::Taken, wire::Chunk>* stream) override {
    std::shared_ptr<Peer> peer;
    grpc::Status status = grpc::Status::OK;
    wire::Chunk chunk;
    while (status.ok() && stream->Read(&chunk)) {
      if (!peer) {
        status = greet(*context, chunk, peer);
        if (!status.ok()) break;
      }
      const Status taken = take(*peer, chunk);
      if (!taken) {
        status = grpc::Status(grpc::StatusCode::PERMISSION_DENIED, taken.error().message);
        break;
      }
      wire::Taken answer;
      answer.set_session(chunk.session());
      answer.set_frame(chunk.frame());
      answer.set_offset(chunk.offset());
      answer.set_receiver(number_);
      if (!stream->Write(answer)) break;
    }
    if (!status.ok()) {
      log_warn("line refused peer={} reason=\"{}\"", context->peer(), status.error_message());
    }
    if (peer) part(*peer);
    return status;
  }

  int64_t num_repeated() const {
    const std::lock_guard lock(peers_mutex_);
    int64_t sum = 0;
    for (const auto& [key, peer] : peers_) {
      const std::lock_guard peer_lock(peer->mutex);
      sum += peer->assembly.num_repeated();
    }
    return sum;
  }

  const ReceiverOptions& options() const { return options_; }

 private:
  struct Peer {
    Peer(const std::string& given, uint64_t start_number, int64_t frame_bytes_max)
        : name(given), number(start_number), assembly(given, frame_bytes_max) {}
    const std::string name;
    const uint64_t number;  // of its start, in the order in which they were heard of
    std::mutex mutex;       // guards the two below, and the order in which frames enter the inbox
    FrameAssembly assembly;
    int num_streams = 0;
  };

  grpc::Status greet(const grpc::ServerContext& context,
                     const wire::Chunk& chunk,
                     std::shared_ptr<Peer>& peer) {
    const std::string& name = chunk.from();
    const std::vector<grpc::string_ref> identities = context.auth_context()->GetPeerIdentity();
    if (std::find(identities.begin(), identities.end(), name) == identities.end()) {
      return {grpc::StatusCode::PERMISSION_DENIED,
              fmt::format("a peer says it is \"{}\", its certificate does not", name)};
    }
    const std::lock_guard lock(peers_mutex_);
    const PeerKey key{name, chunk.session() >> kStartShift};
    if (!peers_.contains(key)) forget_oldest_start(name);
    std::shared_ptr<Peer>& known = peers_[key];
    if (!known) known = std::make_shared<Peer>(name, ++num_starts_, options_.frame_bytes_max);
    const std::lock_guard peer_lock(known->mutex);
    if (known->num_streams >= options_.peer_streams_max) {
      return {grpc::StatusCode::RESOURCE_EXHAUSTED,
              fmt::format("{} has {} streams already", name, known->num_streams)};
    }
    ++known->num_streams;
    peer = known;
    return grpc::Status::OK;
  }

  // Names are bounded by the certificates, starts are not: the oldest without a stream has ended.
  void forget_oldest_start(const std::string& name) {
    auto oldest = peers_.end();
    size_t num_starts = 0;
    for (auto each = peers_.begin(); each != peers_.end(); ++each) {
      if (each->first.first != name) continue;
      ++num_starts;
      const std::lock_guard peer_lock(each->second->mutex);
      const bool is_older = oldest == peers_.end() || each->second->number < oldest->second->number;
      if (each->second->num_streams == 0 && is_older) oldest = each;
    }
    if (num_starts >= kStartsMax && oldest != peers_.end()) peers_.erase(oldest);
  }

  Status take(Peer& peer, const wire::Chunk& chunk) {
    const std::lock_guard lock(peer.mutex);
    Result<std::vector<Frame>> frames =
        peer.assembly.add({.session = chunk.session(),
                           .frame = chunk.frame(),
                           .kind = chunk.kind(),
                           .head = chunk.head(),
                           .frame_payload_bytes = chunk.payload_bytes(),
                           .offset = chunk.offset(),
                           .payload = chunk.payload(),
                           .oldest = chunk.oldest(),
                           .checksum = chunk.checksum()});
    if (!frames) return frames.error();
    for (Frame& frame : *frames) {
      if (options_.on_fast_frame && frame.kind >= options_.fast_kind_min) {
        if (options_.on_fast_frame(std::move(frame))) continue;
        return Error{ErrorCode::kRefused, "a frame that no rank here can have"};
      }
      if (!inbox_->push({.peer = peer.name, .frame = std::move(frame)})) {
        return Error{ErrorCode::kRefused, "this end is closing"};
      }
    }
    return ok();
  }

  void part(Peer& peer) {
    const std::lock_guard lock(peer.mutex);
    if (--peer.num_streams == 0) inbox_->push({.peer = peer.name, .frame = {}});
  }

  using PeerKey = std::pair<std::string, uint64_t>;  // name, start
  static constexpr size_t kStartsMax = 16;           // of one name

  BoundedQueue<Arrival>* inbox_;  // outlives the server
  ReceiverOptions options_;
  uint64_t number_;                 // of this start
  mutable std::mutex peers_mutex_;  // guards the two below
  uint64_t num_starts_ = 0;
  // Each stream's thread holds its peer too, so that a peer outlives its last stream.
  std::map<PeerKey, std::shared_ptr<Peer>> peers_;
};

Receiver::Receiver(BoundedQueue<Arrival>& inbox, const ReceiverOptions& options)
    : service_(std::make_unique<Service>(inbox, options)) {}
Receiver::~Receiver() = default;

void Receiver::join(grpc::ServerBuilder& builder) {
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
  // Windows follow the product of bandwidth and delay that gRPC measures. A fixed one set here
  // counts for streams but not for their connection, which stays at 64 KB: half of 100 Mbit/s.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 1);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 8);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS,
                             static_cast<int>(service_->options().handshake_s * 1e3));
  builder.SetMaxReceiveMessageSize(kMessageBytesMax);
  builder.RegisterService(service_.get());
}

int64_t Receiver::num_repeated() const { return service_->num_repeated(); }

}  // namespace pelago::sites
