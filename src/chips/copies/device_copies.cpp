// Copies between device and host for devices that have no better way: the caller waits for them.
#include "base/error.h"
#include "chips/device.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace {

class FinishedCopy final : public HostCopy {
 public:
  explicit FinishedCopy(Tensor host) : host_(std::move(host)) {}
  bool is_done() override { return true; }
  const Tensor& wait() override { return host_; }

 private:
  Tensor host_;
};

}  // namespace

std::unique_ptr<HostCopy> Device::start_copy_to_host(const Tensor& tensor, const WorkMark&) {
  PELAGO_ASSERT(tensor.is_contiguous(), "tensors are copied as they lie in memory");
  const torch::NoGradGuard no_grad;
  Tensor host = make_host_tensor(tensor.sizes(), tensor.scalar_type());
  host.copy_(tensor);  // also where the device is the CPU: its tensors may change after wait()
  return std::make_unique<FinishedCopy>(std::move(host));
}

Tensor Device::copy_to_device(const Tensor& host, double arrived_s) {
  if (torch_device().is_cpu()) return host;
  Tensor on_device =
      torch::empty(host.sizes(), torch::dtype(host.scalar_type()).device(torch_device()));
  copy_into(on_device, host, arrived_s);
  return on_device;
}

void Device::copy_into(Tensor& on_device, const Tensor& host, double) {
  const torch::NoGradGuard no_grad;
  on_device.copy_(host);
}

Tensor Device::make_host_tensor(at::IntArrayRef sizes, c10::ScalarType dtype) const {
  return torch::empty(sizes, torch::dtype(dtype));
}

}  // namespace pelago::chips
