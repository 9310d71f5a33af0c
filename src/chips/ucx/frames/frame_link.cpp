// The link over UCX tag messages. One thread drives the session. Data goes by credits: each side
// posts num_frames receives and tells the other when it has emptied half of them. A note of no
// credits is the sign of life that is sent when there is nothing to say; one of kGoodbye closes.
#include "chips/ucx/frames/frame_link.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "chips/ucx/frames/wake_file.h"
#include "chips/ucx/session.h"

namespace pelago::chips {
namespace {

constexpr uint64_t kFrameTag = 1, kNoteTag = 2;
constexpr uint64_t kGoodbye = ~uint64_t{0};
constexpr double kLongestNapSeconds = 0.1;  // UCX looks for dead peers only while it is driven
constexpr double kPollSeconds = 40e-6;      // after the last event, to catch the next one awake
constexpr int kLifeSigns = 4;               // in the silence that is taken for death

struct Buffer {
  std::vector<std::byte> bytes;
  size_t num_bytes = 0;  // of them to be sent
  PendingMessage message;
};

class UcxFrameLink final : public FrameLink {
 public:
  explicit UcxFrameLink(const FrameLinkOptions& options)
      : options_(options),
        peer_(1 - options.rank),
        receiving_(static_cast<size_t>(options.num_frames)),
        num_credits_(options.num_frames),
        session_({.rank = options.rank,
                  .num_ranks = 2,
                  .rendezvous_dir = options.rendezvous_dir,
                  .timeout_s = options.connect_s},
                 options.gives_up) {
    for (Buffer& buffer : receiving_) buffer.bytes.resize(options.frame_bytes);
  }
  ~UcxFrameLink() override {
    thread_.request_stop();
    wake_.wake();
  }

  void start(Listener listener) override {
    listener_ = std::move(listener);
    thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  }
  void send(Fill fill) override {
    const std::lock_guard lock(ordered_mutex_);
    if (is_closed_) return;
    ordered_.push_back(std::move(fill));
    wake_.wake();
  }
  size_t frame_bytes() const override { return options_.frame_bytes; }

 private:
  void run(const std::stop_token& stop);
  void work(const std::stop_token& stop);
  bool send_frames();
  void fill_one();
  bool take_frames();
  bool take_notes();
  void send_note(uint64_t note);
  void collect_sent();
  double nap_s() const;

  const FrameLinkOptions options_;
  const int peer_;

  // The link's thread. What UCX reads and writes outlives the session.
  std::vector<Buffer> receiving_;  // a ring, the next to arrive at next_receive_
  size_t next_receive_ = 0;
  std::array<std::byte, sizeof(uint64_t)> note_in_ = {};
  PendingMessage note_message_;
  std::deque<Fill> queue_;
  std::optional<Buffer> on_line_;  // filled; leaves when the emulated line has carried it
  std::deque<Buffer> sending_, spare_;
  std::deque<std::pair<std::unique_ptr<uint64_t>, PendingMessage>> notes_out_;
  int64_t num_credits_;
  uint64_t num_emptied_ = 0;  // receives that the other side was not told of yet
  double line_free_s_ = 0, last_heard_s_ = 0, last_said_s_ = 0;
  bool is_over_ = false;

  UcxSession session_;
  WakeFile wake_;
  Listener listener_;
  std::mutex ordered_mutex_;  // guards what follows
  std::deque<Fill> ordered_;
  bool is_closed_ = false;

  std::jthread thread_;  // last: it uses everything above
};

void UcxFrameLink::run(const std::stop_token& stop) {
  std::string why = "the other side has closed the link";
  try {
    work(stop);
  } catch (const std::exception& error) {
    why = error.what();
  }
  {
    const std::lock_guard lock(ordered_mutex_);
    is_closed_ = true;
    ordered_.clear();
  }
  queue_.clear();
  if (!stop.stop_requested()) listener_.on_lost(why);
}

void UcxFrameLink::work(const std::stop_token& stop) {
  for (Buffer& buffer : receiving_) {
    buffer.message = session_.post_receive_up_to(buffer.bytes, peer_, kFrameTag);
  }
  note_message_ = session_.post_receive(note_in_, peer_, kNoteTag);
  last_heard_s_ = last_said_s_ = steady_now_s();
  double awake_until_s = 0;
  while (!stop.stop_requested() && !is_over_) {
    wake_.clear();
    bool is_busy = send_frames();
    is_busy |= session_.progress();
    is_busy |= take_notes();
    is_busy |= take_frames();
    collect_sent();
    const double now_s = steady_now_s();
    if (is_busy) awake_until_s = now_s + kPollSeconds;
    if (now_s < awake_until_s) continue;
    if (now_s > last_heard_s_ + options_.timeout_s) {
      session_.lose(peer_, fmt::format("it was silent for {} s", options_.timeout_s));
    }
    if (now_s > last_said_s_ + options_.timeout_s / kLifeSigns) send_note(0);
    if (const double longest_s = nap_s(); longest_s > 0) session_.nap(longest_s, wake_.fd());
  }
  if (is_over_) return;
  send_note(kGoodbye);
  const double deadline_s = steady_now_s() + kLongestNapSeconds;
  while (!notes_out_.empty() && steady_now_s() < deadline_s) {
    session_.progress();
    collect_sent();
  }
}

bool UcxFrameLink::send_frames() {
  {
    const std::lock_guard lock(ordered_mutex_);
    std::ranges::move(ordered_, std::back_inserter(queue_));
    ordered_.clear();
  }
  bool is_busy = false;
  while (on_line_ || (!queue_.empty() && num_credits_ > 0)) {
    if (!on_line_) {
      fill_one();
      continue;
    }
    if (steady_now_s() < line_free_s_) break;
    on_line_->message =
        session_.post_send(std::span(on_line_->bytes).first(on_line_->num_bytes), peer_, kFrameTag);
    sending_.push_back(std::move(*on_line_));
    on_line_.reset();
    last_said_s_ = steady_now_s();
    is_busy = true;
  }
  return is_busy;
}

void UcxFrameLink::fill_one() {
  Buffer buffer;
  if (!spare_.empty()) {
    buffer = std::move(spare_.front());
    spare_.pop_front();
  }
  buffer.bytes.resize(options_.frame_bytes);
  buffer.num_bytes = queue_.front()(buffer.bytes);
  queue_.pop_front();
  PELAGO_ASSERT(buffer.num_bytes <= options_.frame_bytes, "a frame holds what is put into it");
  if (buffer.num_bytes == 0) {
    spare_.push_back(std::move(buffer));
    return;
  }
  --num_credits_;
  line_free_s_ = std::max(line_free_s_, steady_now_s()) +
                 static_cast<double>(buffer.num_bytes) * options_.byte_s;
  on_line_ = std::move(buffer);
}

bool UcxFrameLink::take_frames() {
  bool is_busy = false;
  while (true) {
    Buffer& buffer = receiving_[next_receive_];
    if (!session_.is_done(buffer.message)) return is_busy;
    is_busy = true;
    last_heard_s_ = steady_now_s();
    listener_.on_frame(std::span(buffer.bytes).first(buffer.message.received_bytes));
    buffer.message = session_.post_receive_up_to(buffer.bytes, peer_, kFrameTag);
    next_receive_ = (next_receive_ + 1) % receiving_.size();
    if (++num_emptied_ * 2 >= receiving_.size()) send_note(std::exchange(num_emptied_, 0));
  }
}

bool UcxFrameLink::take_notes() {
  if (!session_.is_done(note_message_)) return false;
  uint64_t note = 0;
  std::memcpy(&note, note_in_.data(), sizeof note);
  last_heard_s_ = steady_now_s();
  if (note == kGoodbye) {
    is_over_ = true;
    take_frames();  // what was sent before it
    return false;
  }
  if (note > receiving_.size()) {
    session_.lose(peer_, "it gave back more buffers than there are");
  }
  num_credits_ += static_cast<int64_t>(note);
  note_message_ = session_.post_receive(note_in_, peer_, kNoteTag);
  return true;
}

void UcxFrameLink::send_note(uint64_t note) {
  auto value = std::make_unique<uint64_t>(note);
  const auto bytes = std::as_bytes(std::span(value.get(), 1));
  PendingMessage message = session_.post_send(bytes, peer_, kNoteTag);
  notes_out_.emplace_back(std::move(value), message);
  last_said_s_ = steady_now_s();
}

void UcxFrameLink::collect_sent() {
  while (!sending_.empty() && session_.is_done(sending_.front().message)) {
    spare_.push_back(std::move(sending_.front()));
    sending_.pop_front();
  }
  while (!notes_out_.empty() && session_.is_done(notes_out_.front().second)) {
    notes_out_.pop_front();
  }
}

double UcxFrameLink::nap_s() const {
  if (!on_line_) return kLongestNapSeconds;
  return std::clamp(line_free_s_ - steady_now_s(), 0.0, kLongestNapSeconds);
}

}  // namespace

std::unique_ptr<FrameLink> open_frame_link(const FrameLinkOptions& options) {
  if (options.rank != 0 && options.rank != 1) {
    fail_usage("rank is {}: a link has two sides, 0 and 1", options.rank);
  }
  PELAGO_ASSERT(options.num_frames >= 2 && options.frame_bytes >= 1024 && options.timeout_s > 0,
                "a link has frames to send");
  return std::make_unique<UcxFrameLink>(options);
}

}  // namespace pelago::chips
