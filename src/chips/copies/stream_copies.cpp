#include "chips/copies/stream_copies.h"

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>

#include <chrono>
#include <thread>

#include "base/error.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace {

/// libtorch 1.13's events can be asked but not waited for. A copy of a megabyte takes 40 us.
void wait_for(const c10::Event& event) {
  constexpr auto kNap = std::chrono::microseconds(20);
  while (!event.query()) std::this_thread::sleep_for(kNap);
}

class StreamCopy final : public HostCopy {
 public:
  StreamCopy(Tensor source, Tensor host, c10::Event done)
      : source_(std::move(source)), host_(std::move(host)), done_(std::move(done)) {}
  bool is_done() override { return done_.query(); }
  const Tensor& wait() override {
    wait_for(done_);
    return host_;
  }

 private:
  const Tensor source_;  // kept alive
  const Tensor host_;
  const c10::Event done_;
};

}  // namespace

StreamCopies::StreamCopies(c10::Device device)
    : device_(device),
      streams_(device.type()),
      out_(streams_.getStreamFromGlobalPool(device)),
      in_(streams_.getStreamFromGlobalPool(device)) {}

WorkMark StreamCopies::mark() const {
  auto event = std::make_shared<c10::Event>(device_.type());
  event->record(current());
  return event;
}

std::unique_ptr<HostCopy> StreamCopies::start_copy_to_host(const Tensor& tensor,
                                                           const WorkMark& after) const {
  PELAGO_ASSERT(tensor.is_contiguous(), "tensors are copied as they lie in memory");
  const torch::NoGradGuard no_grad;
  const WorkMark ready = after ? after : mark();
  static_cast<const c10::Event*>(ready.get())->block(out_);
  Tensor host = make_host_tensor(tensor.sizes(), tensor.scalar_type());
  c10::Event done(device_.type());
  {
    const c10::StreamGuard on_stream(out_);
    host.copy_(tensor, /*non_blocking=*/true);
    done.record(out_);
  }
  tensor.record_stream(out_);  // its memory is not used anew before the copy has read it
  return std::make_unique<StreamCopy>(tensor, std::move(host), std::move(done));
}

Tensor StreamCopies::copy_to_device(const Tensor& host) const {
  const torch::NoGradGuard no_grad;
  c10::Event done(device_.type());
  Tensor on_device;
  {
    const c10::StreamGuard on_stream(in_);
    on_device = torch::empty(host.sizes(), torch::dtype(host.scalar_type()).device(device_));
    on_device.copy_(host, /*non_blocking=*/true);
    done.record(in_);
  }
  done.block(current());
  on_device.record_stream(current());
  return on_device;
}

/// The caller waits: it is often a thread that reduces while another gives the device work, and to
/// block that work's stream would stall what does not need the bytes.
void StreamCopies::copy_into(Tensor& on_device, const Tensor& host) const {
  const torch::NoGradGuard no_grad;
  c10::Event done(device_.type());
  {
    const c10::StreamGuard on_stream(in_);
    on_device.copy_(host, /*non_blocking=*/true);
    done.record(in_);
  }
  wait_for(done);
}

Tensor StreamCopies::make_host_tensor(at::IntArrayRef sizes, c10::ScalarType dtype) {
  return torch::empty(sizes, torch::dtype(dtype).pinned_memory(true));
}

}  // namespace pelago::chips
