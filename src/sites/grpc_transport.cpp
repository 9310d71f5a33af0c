#include "sites/grpc_transport.h"

#include <grpc/support/log.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "base/clock.h"
#include "base/error.h"
#include "base/files.h"
#include "base/log.h"
#include "base/threads.h"
#include "sites/transport/frame_assembly.h"
#include "wire.grpc.pb.h"

namespace pelago::sites {

namespace {

constexpr size_t kChunkBytes = 1 << 20;
constexpr int kMessageBytesMax = 4 << 20;
constexpr size_t kQueuedFramesMax = 1024;
constexpr size_t kInboxFramesMax = 1024;
constexpr double kConnectS = 1.0;

struct Credentials {
  std::string authority, certificate, key;
};

Credentials read_credentials(const GrpcTransportOptions& options) {
  const auto read = [&](const std::string& name) {
    try {
      return read_text_file(options.certs_dir / name);
    } catch (const Failure& failure) {
      fail_usage("{}; make certificates with pelago certs", failure.what());
    }
  };
  return {.authority = read("ca.pem"),
          .certificate = read(options.name + ".pem"),
          .key = read(options.name + ".key")};
}

void log_of_grpc(gpr_log_func_args* args) { log_debug("grpc {}", args->message); }

grpc::ChannelArguments channel_arguments(const std::string& peer) {
  grpc::ChannelArguments arguments;
  arguments.SetSslTargetNameOverride(peer);
  arguments.SetMaxSendMessageSize(kMessageBytesMax);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 5000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A proxy for web pages has no business between sites.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return arguments;
}

/// One peer, seen from the sender: a queue, a thread and a stream.
class PeerLine {
 public:
  PeerLine(std::string name,
           const std::string& address,
           const std::string& from,
           const Credentials& credentials,
           std::optional<LineOptions> emulated,
           std::function<void()> on_lost)
      : name_(std::move(name)), from_(from), on_lost_(std::move(on_lost)) {
    if (emulated) line_.emplace(*emulated);
    channel_ =
        grpc::CreateCustomChannel(address,
                                  grpc::SslCredentials({.pem_root_certs = credentials.authority,
                                                        .pem_private_key = credentials.key,
                                                        .pem_cert_chain = credentials.certificate}),
                                  channel_arguments(name_));
    stub_ = wire::Line::NewStub(channel_);
    thread_ = std::jthread([this](const std::stop_token& stop) { send_all(stop); });
  }

  ~PeerLine() {
    thread_.request_stop();
    const std::lock_guard lock(stream_mutex_);
    if (context_) context_->TryCancel();
  }

  bool push(Frame frame) {
    const std::lock_guard lock(frames_mutex_);
    if (frames_.size() >= kQueuedFramesMax) return false;
    const double now_s = steady_now_s();
    const double due_s = line_ ? line_->arrival_s(now_s, frame.num_bytes()) : now_s;
    frames_.push_back({.due_s = due_s, .frame = std::move(frame)});
    changed_.notify_all();
    return true;
  }

  int64_t num_queued() const {
    const std::lock_guard lock(frames_mutex_);
    return static_cast<int64_t>(frames_.size());
  }

 private:
  struct Queued {
    double due_s;
    Frame frame;
  };

  void send_all(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      const Frame* frame = wait_for_due(stop);
      if (frame == nullptr) break;
      // A stream that broke while idle shows only now: once more over a new one.
      const bool sent = write(*frame, stop) || (!stop.stop_requested() && write(*frame, stop));
      if (!sent && !stop.stop_requested()) on_lost_();
      const std::lock_guard lock(frames_mutex_);
      if (sent) {
        frames_.pop_front();
      } else {
        frames_.clear();  // nobody is there; whoever needs them will ask again
      }
    }
    close_stream();
  }

  // Only this thread removes frames, so the front stays where it is after the lock is gone.
  const Frame* wait_for_due(const std::stop_token& stop) {
    std::unique_lock lock(frames_mutex_);
    if (!changed_.wait(lock, stop, [&] { return !frames_.empty(); })) return nullptr;
    const double wait_s = frames_.front().due_s - steady_now_s();
    if (wait_s > 0) {
      changed_.wait_for(lock, stop, std::chrono::duration<double>(wait_s), [] { return false; });
    }
    return stop.stop_requested() ? nullptr : &frames_.front().frame;
  }

  bool write(const Frame& frame, const std::stop_token& stop) {
    if (!open_stream(stop)) return false;
    size_t sent_bytes = 0;
    do {
      wire::Chunk chunk;
      if (sent_bytes == 0) {
        chunk.set_from(from_);
        chunk.set_kind(frame.kind);
        chunk.set_head(frame.head);
        chunk.set_payload_bytes(frame.payload.size());
      }
      const size_t num_bytes = std::min(kChunkBytes, frame.payload.size() - sent_bytes);
      chunk.set_payload(frame.payload.data() + sent_bytes, num_bytes);
      sent_bytes += num_bytes;
      chunk.set_last(sent_bytes == frame.payload.size());
      if (!writer_->Write(chunk)) {
        close_stream();
        return false;
      }
    } while (sent_bytes < frame.payload.size());
    return true;
  }

  bool open_stream(const std::stop_token& stop) {
    if (writer_) return true;
    const double deadline_s = steady_now_s() + kConnectS;
    while (!channel_->WaitForConnected(std::chrono::system_clock::now() +
                                       std::chrono::milliseconds(50))) {
      if (stop.stop_requested() || steady_now_s() > deadline_s) return false;
    }
    const std::lock_guard lock(stream_mutex_);
    if (stop.stop_requested()) return false;
    context_ = std::make_unique<grpc::ClientContext>();
    writer_ = stub_->Deliver(context_.get(), &delivered_);
    return writer_ != nullptr;
  }

  void close_stream() {
    if (!writer_) return;
    context_->TryCancel();
    const grpc::Status status = writer_->Finish();
    log_debug("line closed peer={} reason=\"{}\"", name_, status.error_message());
    const std::lock_guard lock(stream_mutex_);
    writer_.reset();
    context_.reset();
  }

  const std::string name_, from_;
  std::function<void()> on_lost_;
  std::shared_ptr<grpc::Channel> channel_;  // gRPC's own way to hold it
  std::unique_ptr<wire::Line::Stub> stub_;
  std::mutex stream_mutex_;  // guards the coming and going of context_
  std::unique_ptr<grpc::ClientContext> context_;
  wire::Delivered delivered_;
  std::unique_ptr<grpc::ClientWriter<wire::Chunk>> writer_;  // the thread's
  mutable std::mutex frames_mutex_;                          // guards frames_ and line_
  std::condition_variable_any changed_;
  std::deque<Queued> frames_;
  std::optional<EmulatedLine> line_;
  std::jthread thread_;  // last: it uses everything above
};

class Receiver final : public wire::Line::Service {
 public:
  Receiver(BoundedQueue<Arrival>& inbox, int64_t frame_bytes_max)
      : inbox_(&inbox), frame_bytes_max_(frame_bytes_max) {}

  grpc::Status Deliver(grpc::ServerContext* context,
                       grpc::ServerReader<wire::Chunk>* reader,
                       wire::Delivered*) override {
    std::vector<std::string> identities;
    for (const grpc::string_ref& name : context->auth_context()->GetPeerIdentity()) {
      identities.emplace_back(name.data(), name.size());
    }
    FrameAssembly assembly(std::move(identities), frame_bytes_max_);
    std::string peer;
    grpc::Status status = grpc::Status::OK;
    wire::Chunk chunk;
    while (reader->Read(&chunk)) {
      Result<std::optional<Frame>> frame =
          assembly.add({.from = chunk.from(),
                        .kind = chunk.kind(),
                        .head = chunk.head(),
                        .frame_payload_bytes = chunk.payload_bytes(),
                        .payload = chunk.payload(),
                        .last = chunk.last()});
      if (!frame) {
        log_warn("line refused peer={} reason=\"{}\"", context->peer(), frame.error().message);
        status = grpc::Status(grpc::StatusCode::PERMISSION_DENIED, frame.error().message);
        break;
      }
      if (!*frame) continue;
      peer = (*frame)->from;
      if (!inbox_->push({.peer = peer, .frame = std::move(**frame)})) break;
    }
    if (!peer.empty()) inbox_->push({.peer = peer, .frame = {}});
    return status;
  }

 private:
  BoundedQueue<Arrival>* inbox_;  // outlives the server
  int64_t frame_bytes_max_;
};

}  // namespace

struct GrpcTransport::Impl {
  explicit Impl(const GrpcTransportOptions& given)
      : options(given),
        credentials(read_credentials(given)),
        inbox(kInboxFramesMax),
        receiver(inbox, given.frame_bytes_max) {}

  GrpcTransportOptions options;
  Credentials credentials;
  BoundedQueue<Arrival> inbox;
  Receiver receiver;
  std::unique_ptr<grpc::Server> server;
  int port = 0;
  mutable std::mutex peers_mutex;  // guards the three below
  std::map<std::string, std::string> addresses;
  std::map<std::string, std::unique_ptr<PeerLine>> lines;
  std::map<std::string, PeerTraffic> traffic;
  // Not through the inbox: a sending thread must never wait for the one that reads it.
  std::mutex lost_mutex;  // guards lost_peers
  std::vector<std::string> lost_peers;
};

GrpcTransport::GrpcTransport(const GrpcTransportOptions& options)
    : impl_(std::make_unique<Impl>(options)) {
  gpr_set_log_function(log_of_grpc);
  // Who comes to the door has no certificate; the line itself refuses a peer without a name.
  grpc::SslServerCredentialsOptions ssl(
      options.door == nullptr ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                              : GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY);
  ssl.pem_root_certs = impl_->credentials.authority;
  ssl.pem_key_cert_pairs.push_back(
      {.private_key = impl_->credentials.key, .cert_chain = impl_->credentials.certificate});
  grpc::ServerBuilder builder;
  builder.AddListeningPort(options.listen, grpc::SslServerCredentials(ssl), &impl_->port);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
  builder.SetMaxReceiveMessageSize(kMessageBytesMax);
  builder.RegisterService(&impl_->receiver);
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
  std::optional<LineOptions> emulated;
  if (impl_->options.emulated_line) emulated = impl_->options.emulated_line(peer);
  impl_->lines[peer] = std::make_unique<PeerLine>(
      peer, address, impl_->options.name, impl_->credentials, emulated, [this, peer] {
        const std::lock_guard lost_lock(impl_->lost_mutex);
        impl_->lost_peers.push_back(peer);
      });
}

bool GrpcTransport::send(const std::string& peer, Frame frame) {
  const std::lock_guard lock(impl_->peers_mutex);
  const auto line = impl_->lines.find(peer);
  if (line == impl_->lines.end()) return false;
  const PeerTraffic added{.sent_frames = 1,
                          .sent_bytes = frame.num_bytes(),
                          .sent_payload_bytes = static_cast<int64_t>(frame.payload.size())};
  if (!line->second->push(std::move(frame))) return false;
  PeerTraffic& traffic = impl_->traffic[peer];
  traffic.sent_frames += added.sent_frames;
  traffic.sent_bytes += added.sent_bytes;
  traffic.sent_payload_bytes += added.sent_payload_bytes;
  return true;
}

std::optional<Arrival> GrpcTransport::receive(double timeout_s) {
  {
    const std::lock_guard lock(impl_->lost_mutex);
    if (!impl_->lost_peers.empty()) {
      Arrival lost{.peer = impl_->lost_peers.back(), .frame = {}};
      impl_->lost_peers.pop_back();
      return lost;
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
  return impl_->traffic;
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
