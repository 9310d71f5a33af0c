// Messages between two ranks that travel while their devices compute: activations on their way
// through a pipeline. A thread of its own waits for copies from the device, sends, and receives
// into memory that was made ready before; the thread that computes only ever waits for a message
// that has not come.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "chips/collective.h"
#include "chips/device.h"
#include "chips/tensor.h"

namespace pelago::chips {

/// Methods belong to one thread, and throw Failure naming the rank if a peer is gone or silent for
/// timeout_s, and whatever went wrong with an earlier message.
class Courier {
 public:
  virtual ~Courier() = default;

  /// Sends a contiguous tensor of the device as it is now, and returns at once. Messages of one
  /// sender and tag arrive in the order they were sent. Nobody may write to the tensor later.
  virtual void send(const Tensor& tensor, int to_rank, uint32_t tag) = 0;
  /// Makes ready for a message of this shape and dtype, so that it can arrive during other work.
  virtual void expect(at::IntArrayRef shape,
                      c10::ScalarType dtype,
                      int from_rank,
                      uint32_t tag) = 0;
  /// Waits for the oldest message expected of this rank and tag, and gives it to the device:
  /// [shape] on the device, which later work waits for.
  virtual Tensor take(int from_rank, uint32_t tag) = 0;
  /// Waits until everything was sent.
  virtual void flush() = 0;

  /// Seconds that take() waited for messages since the last call of this.
  virtual double waited_s() = 0;
};

/// options.device is needed. All ranks open one together; rendezvous_dir is not that of another
/// courier or collective. A single rank gets one that nobody can send with.
std::unique_ptr<Courier> open_courier(const CollectiveOptions& options);

}  // namespace pelago::chips
