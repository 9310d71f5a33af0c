// What is on its way to one peer, as arithmetic: frames wait here until every chunk of theirs was
// acknowledged. Streams take chunks as fast as each can send; when a stream breaks, what it carried
// goes to whichever stream asks next. A frame therefore goes on from where it was cut, over the
// streams that are left or over new ones. Not thread-safe; the line that owns it locks.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "sites/transport/frame_assembly.h"
#include "sites/transport/transport.h"

namespace pelago::sites {

/// A chunk that a stream is to send. frame keeps the bytes alive while they are written: the window
/// and the writing stream own it together.
struct OutgoingChunk {
  std::shared_ptr<const Frame> frame;
  FrameChunk chunk;  // views into frame
};

struct TakenChunk {
  uint64_t receiver = 0;  // new whenever the peer starts
  uint64_t session = 0, frame = 0, offset = 0;
};

class SendWindow {
 public:
  SendWindow(uint64_t session, size_t num_frames_max)
      : session_(session), num_frames_max_(num_frames_max) {}

  /// False if too many frames wait. due_s: not sent earlier.
  bool push(Frame frame, double due_s);
  /// The next chunk for this stream. Small frames go over stream 0, so that the other connections
  /// are made only when there is much to send.
  std::optional<OutgoingChunk> take(int stream, double now_s);
  /// The peer holds the chunk. Of an older session, or twice: nothing happens. receiver: a new one
  /// has nothing of what the last one took, so frames that are not whole go out again from the
  /// start.
  void on_taken(const TakenChunk& taken, double now_s);
  /// What this stream carried must go out again.
  void on_broken(int stream);
  /// Drops everything, under a new session. Returns how many frames were lost.
  size_t give_up(uint64_t session);

  size_t num_frames() const { return frames_.size(); }
  /// Those of them of this kind or above.
  int64_t num_frames_from(uint32_t kind_min) const;
  /// When the next frame may be sent, if none may be yet.
  std::optional<double> next_due_s() const;
  /// Mbit/s of payload acknowledged while there was something to send, smoothed; 0: not known.
  double rate_mbit_s() const { return rate_mbit_s_; }
  int64_t resent_bytes() const { return resent_bytes_; }

 private:
  static constexpr int kWaiting = -1, kTaken = -2;  // else the stream that carries it
  struct Outgoing {
    std::shared_ptr<const Frame> frame;
    double due_s = 0;
    std::vector<int> carriers;  // of each chunk
    size_t num_open = 0;        // chunks not acknowledged
    size_t first_waiting = 0;   // no chunk before it waits
  };
  void start_over();
  void note_rate(int64_t num_bytes, double now_s);

  uint64_t session_;
  size_t num_frames_max_;
  uint64_t receiver_ = 0, last_receiver_ = 0;  // 0: not known
  uint64_t first_frame_ = 0;                   // the number of frames_.front()
  std::deque<Outgoing> frames_;
  int64_t resent_bytes_ = 0;
  double rate_mbit_s_ = 0;
  double measured_since_s_ = 0;
  int64_t measured_bytes_ = 0;
};

}  // namespace pelago::sites
