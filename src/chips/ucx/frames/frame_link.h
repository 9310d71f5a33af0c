// Frames of bytes between two processes, both ways, whose memory is bounded on both sides: as many
// frames are under way as the other side has buffers free, and a frame is filled only when its turn
// has come. So whoever has much to send queues what to send, not the bytes, and who receives slowly
// slows the sender down.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>

namespace pelago::chips {

class FrameLink {
 public:
  /// Writes one frame and returns its bytes; 0: it is not needed any more, and nothing is sent.
  using Fill = std::function<size_t(std::span<std::byte> frame)>;
  /// Both are called on the link's thread and must not block for long.
  struct Listener {
    std::function<void(std::span<const std::byte> frame)> on_frame;
    /// At most once: the other side closed, is gone, or was silent for timeout_s; one line. Nothing
    /// comes after it.
    std::function<void(const std::string& why)> on_lost;
  };

  FrameLink() = default;
  FrameLink(const FrameLink&) = delete;
  FrameLink& operator=(const FrameLink&) = delete;
  /// Closes; the other side hears of it. No listener is called after it.
  virtual ~FrameLink() = default;

  /// Once, before anything else.
  virtual void start(Listener listener) = 0;
  /// Any thread; never waits. Frames arrive in the order of the calls. fill is called on the link's
  /// thread; once the link is lost, not at all.
  virtual void send(Fill fill) = 0;
  /// The most a frame may have.
  virtual size_t frame_bytes() const = 0;
};

struct FrameLinkOptions {
  int rank = 0;  // 0 or 1; the other side has the other
  /// Both leave their addresses here; empty at the start, one folder a link.
  std::filesystem::path rendezvous_dir = {};
  double connect_s = 300;               // for the other side to come; it may be loading a model
  double timeout_s = 30;                // the longest silence that is not yet a failure
  size_t frame_bytes = 512 * 1024;      // alike on both sides; below it UCX's costs a message show
  int num_frames = 8;                   // buffers to receive into; alike on both sides
  double byte_s = 0;                    // of an emulated line: seconds a byte that this side sends
  std::function<bool()> gives_up = {};  // asked while it waits for the other side: whether to go on
                                        // is of no use; empty: it waits for connect_s
};

/// Over UCX: shared memory, RDMA or TCP, whatever the two have. Returns once they are connected;
/// throws Failure if the other side does not come in time.
std::unique_ptr<FrameLink> open_frame_link(const FrameLinkOptions& options);

}  // namespace pelago::chips
