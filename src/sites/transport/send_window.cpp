#include "sites/transport/send_window.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace pelago::sites {

bool SendWindow::push(Frame frame, double due_s) {
  if (frames_.size() >= num_frames_max_) return false;
  if (frames_.empty()) {  // an idle line says nothing about its rate
    measured_bytes_ = 0;
    measured_since_s_ = due_s;
  }
  const size_t num_chunks =
      std::max<size_t>(1, (frame.payload.size() + kChunkBytes - 1) / kChunkBytes);
  frames_.push_back({.frame = std::make_shared<const Frame>(std::move(frame)),
                     .due_s = due_s,
                     .carriers = std::vector<int>(num_chunks, kWaiting),
                     .num_open = num_chunks,
                     .first_waiting = 0});
  return true;
}

std::optional<OutgoingChunk> SendWindow::take(int stream, double now_s) {
  int64_t ahead_bytes = 0;
  for (size_t i = 0; i < std::min<size_t>(frames_.size(), kFramesAheadMax); ++i) {
    Outgoing& out = frames_[i];
    ahead_bytes += static_cast<int64_t>(out.frame->payload.size());
    if (out.due_s > now_s || (i > 0 && ahead_bytes > kBytesAheadMax)) break;
    if (out.first_waiting == out.carriers.size()) continue;
    if (stream > 0 && out.carriers.size() == 1) continue;
    const size_t idx = out.first_waiting;
    out.carriers[idx] = stream;
    while (out.first_waiting < out.carriers.size() && out.carriers[out.first_waiting] != kWaiting) {
      ++out.first_waiting;
    }
    const uint64_t offset = idx * kChunkBytes;
    OutgoingChunk outgoing{.frame = out.frame, .chunk = {}};
    outgoing.chunk = {.session = session_,
                      .frame = first_frame_ + i,
                      .kind = idx == 0 ? out.frame->kind : 0,
                      .head = idx == 0 ? std::string_view(out.frame->head) : std::string_view(),
                      .frame_payload_bytes = out.frame->payload.size(),
                      .offset = offset,
                      .payload = std::string_view(out.frame->payload).substr(offset, kChunkBytes),
                      .oldest = first_frame_,
                      .checksum = 0};
    return outgoing;
  }
  return std::nullopt;
}

void SendWindow::on_taken(const TakenChunk& taken, double now_s) {
  if (taken.session != session_ || taken.receiver == last_receiver_) return;
  if (taken.receiver != receiver_) {
    if (receiver_ != 0) start_over();
    last_receiver_ = receiver_;
    receiver_ = taken.receiver;
  }
  if (taken.frame < first_frame_ || taken.frame - first_frame_ >= frames_.size()) return;
  Outgoing& out = frames_[static_cast<size_t>(taken.frame - first_frame_)];
  const size_t idx = static_cast<size_t>(taken.offset / kChunkBytes);
  if (idx >= out.carriers.size() || out.carriers[idx] == kTaken) return;
  out.carriers[idx] = kTaken;
  while (out.first_waiting < out.carriers.size() && out.carriers[out.first_waiting] != kWaiting) {
    ++out.first_waiting;
  }
  --out.num_open;
  note_rate(static_cast<int64_t>(
                std::min<size_t>(kChunkBytes, out.frame->payload.size() - idx * kChunkBytes)),
            now_s);
  while (!frames_.empty() && frames_.front().num_open == 0) {
    frames_.pop_front();
    ++first_frame_;
  }
}

void SendWindow::start_over() {
  for (Outgoing& out : frames_) {
    std::replace(out.carriers.begin(), out.carriers.end(), kTaken, kWaiting);
    out.num_open = out.carriers.size();
    out.first_waiting = static_cast<size_t>(
        std::find(out.carriers.begin(), out.carriers.end(), kWaiting) - out.carriers.begin());
  }
}

void SendWindow::on_broken(int stream) {
  for (Outgoing& out : frames_) {
    for (size_t idx = 0; idx < out.carriers.size(); ++idx) {
      if (out.carriers[idx] != stream) continue;
      out.carriers[idx] = kWaiting;
      out.first_waiting = std::min(out.first_waiting, idx);
      resent_bytes_ += static_cast<int64_t>(
          std::min<size_t>(kChunkBytes, out.frame->payload.size() - idx * kChunkBytes));
    }
  }
}

size_t SendWindow::give_up(uint64_t session) {
  PELAGO_ASSERT(session != session_, "the peer tells sessions apart by their numbers");
  session_ = session;
  first_frame_ = 0;
  const size_t num_lost = frames_.size();
  frames_.clear();
  return num_lost;
}

int64_t SendWindow::num_frames_from(uint32_t kind_min) const {
  return std::count_if(frames_.begin(), frames_.end(), [&](const Outgoing& out) {
    return out.frame->kind >= kind_min;
  });
}

std::optional<double> SendWindow::next_due_s() const {
  for (const Outgoing& out : frames_) {
    if (out.first_waiting < out.carriers.size()) return out.due_s;
  }
  return std::nullopt;
}

void SendWindow::note_rate(int64_t num_bytes, double now_s) {
  // Shorter than this, a burst of acknowledgements measures the burst.
  constexpr double kMeasureS = 0.25;
  measured_bytes_ += num_bytes;
  const double took_s = now_s - measured_since_s_;
  if (took_s < kMeasureS) return;
  const double rate = static_cast<double>(measured_bytes_) * 8e-6 / took_s;
  rate_mbit_s_ = rate_mbit_s_ == 0 ? rate : 0.5 * (rate_mbit_s_ + rate);
  measured_bytes_ = 0;
  measured_since_s_ = now_s;
}

}  // namespace pelago::sites
