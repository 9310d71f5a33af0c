#include "sites/transport/grpc/grpc_line.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "sites/transport/grpc/grpc_receiver.h"
#include "sites/transport/line_sockets.h"
#include "sites/transport/send_window.h"
#include "wire.grpc.pb.h"

namespace pelago::sites {

namespace {

constexpr size_t kQueuedFramesMax = 1024;
constexpr double kConnectS = 1.0;
// So many streams ended without a chunk taken, and what waits is given up: the peer refuses it.
constexpr int kBreaksMax = 12;
constexpr std::chrono::milliseconds kBreakPause(20);

uint64_t new_session(uint32_t start) {
  std::random_device device;
  return (uint64_t{start} << kStartShift) | device();
}

std::shared_ptr<grpc::Channel> open_channel(const PeerLineOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetSslTargetNameOverride(options.peer);
  arguments.SetMaxSendMessageSize(kMessageBytesMax);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 5000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
  // Each stream has a connection of its own.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A proxy for web pages has no business between sites.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(options.address, options.credentials, arguments);
}

wire::Chunk message_of(const FrameChunk& chunk) {
  wire::Chunk message;
  message.set_session(chunk.session);
  message.set_frame(chunk.frame);
  message.set_kind(chunk.kind);
  message.set_head(chunk.head.data(), chunk.head.size());
  message.set_payload_bytes(chunk.frame_payload_bytes);
  message.set_offset(chunk.offset);
  message.set_payload(chunk.payload.data(), chunk.payload.size());
  message.set_oldest(chunk.oldest);
  message.set_checksum(checksum_of(chunk));
  return message;
}

/// One connection. write(), close() and the destructor belong to the sending thread.
class Stream {
 public:
  using OnTaken = std::function<void(const wire::Taken&)>;

  Stream(const PeerLineOptions& options, OnTaken on_taken, std::function<void()> on_broken)
      : options_(&options), on_taken_(std::move(on_taken)), on_broken_(std::move(on_broken)) {}
  ~Stream() { close(); }

  bool write(const FrameChunk& chunk, const std::stop_token& stop) {
    if (is_broken_) close();
    if (!open(stop)) return false;
    wire::Chunk message = message_of(chunk);
    if (!has_greeted_) message.set_from(options_->from);
    has_greeted_ = true;
    if (stream_->Write(message)) return true;
    close();
    return false;
  }

  /// From any thread: what write() waits for ends.
  void cancel() {
    const std::lock_guard lock(context_mutex_);
    if (context_) context_->TryCancel();
  }

  void close() {
    if (!stream_) return;
    cancel();
    reader_.join();
    const grpc::Status status = stream_->Finish();
    log_debug("line closed peer={} reason=\"{}\"", options_->peer, status.error_message());
    {
      const std::lock_guard lock(context_mutex_);
      stream_.reset();
      context_.reset();
    }
    is_broken_ = false;
    on_broken_();
  }

 private:
  bool open(const std::stop_token& stop) {
    if (stream_) return true;
    if (!channel_) {
      channel_ = open_channel(*options_);
      stub_ = wire::Line::NewStub(channel_);
    }
    const double deadline_s = steady_now_s() + kConnectS;
    while (!channel_->WaitForConnected(std::chrono::system_clock::now() +
                                       std::chrono::milliseconds(50))) {
      if (stop.stop_requested() || steady_now_s() > deadline_s) return false;
    }
    // A quarter more than its share, so that three streams fill the line when the fourth stalls.
    std::optional<double> pace_mbit_s = options_->bandwidth_mbit_s;
    if (pace_mbit_s) *pace_mbit_s *= 1.25 / options_->num_streams;
    tune_line_sockets(options_->address, pace_mbit_s);
    const std::lock_guard lock(context_mutex_);
    if (stop.stop_requested()) return false;
    context_ = std::make_unique<grpc::ClientContext>();
    stream_ = stub_->Deliver(context_.get());
    has_greeted_ = false;
    reader_ = std::jthread([this] {
      wire::Taken taken;
      while (stream_->Read(&taken)) on_taken_(taken);
      is_broken_ = true;
      on_broken_();
    });
    return true;
  }

  const PeerLineOptions* options_;  // the line's, outlives this
  OnTaken on_taken_;
  std::function<void()> on_broken_;
  std::shared_ptr<grpc::Channel> channel_;  // gRPC's own way to hold it
  std::unique_ptr<wire::Line::Stub> stub_;
  std::mutex context_mutex_;  // guards the coming and going of context_
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::ClientReaderWriter<wire::Chunk, wire::Taken>> stream_;
  bool has_greeted_ = false;
  std::atomic<bool> is_broken_ = false;  // the reader has seen the end
  std::jthread reader_;
};

}  // namespace

struct PeerLine::Impl {
  explicit Impl(const PeerLineOptions& given)
      : options(given), window(new_session(given.start), kQueuedFramesMax) {
    if (options.emulated) line.emplace(*options.emulated);
    unreached_since_s.resize(static_cast<size_t>(options.num_streams), 0);
    for (int idx = 0; idx < options.num_streams; ++idx) {
      streams.push_back(std::make_unique<Stream>(
          options,
          [this](const wire::Taken& taken) {
            const std::lock_guard lock(window_mutex);
            taken_s = steady_now_s();
            num_breaks = 0;
            // Reached: what failed before counts no more when the line next breaks.
            std::fill(unreached_since_s.begin(), unreached_since_s.end(), 0.0);
            window.on_taken({.receiver = taken.receiver(),
                             .session = taken.session(),
                             .frame = taken.frame(),
                             .offset = taken.offset()},
                            taken_s);
            note_change();
          },
          [this, idx] {
            int64_t num_lost = 0;
            {
              const std::lock_guard lock(window_mutex);
              window.on_broken(idx);
              if (window.num_frames() > 0 && ++num_breaks > kBreaksMax) num_lost = give_up();
              note_change();
            }
            if (num_lost > 0) options.on_lost(num_lost);
          }));
    }
    for (int idx = 0; idx < options.num_streams; ++idx) {
      threads.emplace_back([this, idx](const std::stop_token& stop) { send_all(idx, stop); });
    }
  }

  ~Impl() {
    for (std::jthread& thread : threads) thread.request_stop();
    for (const auto& stream : streams) stream->cancel();
    threads.clear();
    streams.clear();  // their readers use the window
  }

  void send_all(int idx, const std::stop_token& stop) {
    Stream& stream = *streams[static_cast<size_t>(idx)];
    while (!stop.stop_requested()) {
      const std::optional<OutgoingChunk> outgoing = wait_for_chunk(idx, stop);
      if (!outgoing) break;
      if (stream.write(outgoing->chunk, stop)) {
        const std::lock_guard lock(window_mutex);
        unreached_since_s[static_cast<size_t>(idx)] = 0;
      } else if (!stop.stop_requested()) {
        note_unreached(idx);
      }
    }
    stream.close();
  }

  std::optional<OutgoingChunk> wait_for_chunk(int idx, const std::stop_token& stop) {
    std::unique_lock lock(window_mutex);
    if (num_breaks > 0) {  // whoever refuses is not asked again at once
      changed.wait_for(lock, stop, num_breaks * kBreakPause, [] { return false; });
    }
    while (!stop.stop_requested()) {
      const double now_s = steady_now_s();
      std::optional<OutgoingChunk> outgoing = window.take(idx, now_s);
      if (outgoing) return outgoing;
      const double due_s = window.next_due_s().value_or(now_s);
      if (due_s > now_s) {
        changed.wait_for(
            lock, stop, std::chrono::duration<double>(due_s - now_s), [] { return false; });
      } else {
        const uint64_t seen = num_changes;
        changed.wait(lock, stop, [&] { return num_changes != seen; });
      }
    }
    return std::nullopt;
  }

  // A stream that broke while idle shows only at the next write: the first failure is no news.
  void note_unreached(int idx) {
    bool is_news = false;
    int64_t num_lost = 0;
    {
      const std::lock_guard lock(window_mutex);
      window.on_broken(idx);
      note_change();
      const double now_s = steady_now_s();
      double& since_s = unreached_since_s[static_cast<size_t>(idx)];
      if (since_s == 0) {
        since_s = now_s;
      } else {
        is_news = idx == 0;
        if (now_s - std::max(since_s, taken_s) > options.patience_s) {
          num_lost = give_up();
        }
      }
    }
    if (is_news || num_lost > 0) options.on_lost(num_lost);
  }

  /// Returns how many of the precious frames went with it.
  int64_t give_up() {
    const int64_t num_precious = window.num_frames_from(options.precious_kind_min);
    const size_t num_lost = window.give_up(new_session(options.start));
    log_warn("line given up peer={} frames_lost={}", options.peer, num_lost);
    num_breaks = 0;
    std::fill(unreached_since_s.begin(), unreached_since_s.end(), 0.0);
    return num_precious;
  }

  void note_change() {
    ++num_changes;
    changed.notify_all();
  }

  PeerLineOptions options;
  mutable std::mutex window_mutex;  // guards all down to line
  std::condition_variable_any changed;
  uint64_t num_changes = 0;
  double taken_s = 0;                     // when the peer last acknowledged a chunk
  int num_breaks = 0;                     // of streams, since then
  std::vector<double> unreached_since_s;  // of each stream; 0: it was reached
  SendWindow window;
  std::optional<EmulatedLine> line;
  std::vector<std::unique_ptr<Stream>> streams;
  std::vector<std::jthread> threads;  // last: they use everything above
};

PeerLine::PeerLine(const PeerLineOptions& options) : impl_(std::make_unique<Impl>(options)) {}
PeerLine::~PeerLine() = default;

bool PeerLine::push(Frame frame) {
  const std::lock_guard lock(impl_->window_mutex);
  const double now_s = steady_now_s();
  const double due_s = impl_->line ? impl_->line->arrival_s(now_s, frame.num_bytes()) : now_s;
  const bool pushed = impl_->window.push(std::move(frame), due_s);
  impl_->note_change();
  return pushed;
}

int64_t PeerLine::num_queued() const {
  const std::lock_guard lock(impl_->window_mutex);
  return static_cast<int64_t>(impl_->window.num_frames());
}

PeerTraffic PeerLine::measured() const {
  const std::lock_guard lock(impl_->window_mutex);
  PeerTraffic traffic;
  traffic.rate_mbit_s = impl_->window.rate_mbit_s();
  traffic.resent_bytes = impl_->window.resent_bytes();
  return traffic;
}

}  // namespace pelago::sites
