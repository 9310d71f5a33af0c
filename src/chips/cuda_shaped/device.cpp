#include "chips/cuda_shaped/device.h"

#include <stdlib.h>
#include <torch/cuda.h>

#include <optional>

#include "base/error.h"
#include "chips/copies/stream_copies.h"
#include "chips/vendor/trial.h"

namespace pelago::chips {
namespace {

class Cuda final : public Device {
 public:
  Cuda(std::string name, int device_idx, const Vendor& vendor, const Catalogue& catalogue)
      : name_(std::move(name)),
        device_(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device_idx)),
        properties_(vendor.read_properties(device_idx)),
        chip_(copy_of(match_chip(catalogue, vendor.torch_device, properties_))) {
    for (const auto& [variable, value] : vendor.environment) {
      ::setenv(variable.c_str(), value.c_str(), /*overwrite=*/0);
    }
    hold_a_tensor(name_, device_, vendor);
    copies_.emplace(device_);
    constexpr int kFirstWithBf16 = 8;  // compute capability 8.0, A100
    has_bf16_ = chip_                           ? chip_->has_bf16
                : properties_.compute_major > 0 ? properties_.compute_major >= kFirstWithBf16
                                                : computes_in_bf16(device_);
  }

  c10::Device torch_device() const override { return device_; }
  const std::string& name() const override { return name_; }
  const Chip* chip() const override { return chip_ ? &*chip_ : nullptr; }
  c10::ScalarType training_dtype() const override {
    return has_bf16_ ? c10::kBFloat16 : c10::kHalf;
  }
  void synchronize() override { torch::cuda::synchronize(device_.index()); }
  DeviceStats stats() const override { return {}; }
  void reset_stats() override {}
  int64_t memory_bytes() const override {
    if (properties_.memory_bytes > 0 || !chip_) return properties_.memory_bytes;
    return static_cast<int64_t>(chip_->usable_memory_gib * 0x1p30);
  }

  WorkMark mark() override { return copies_->mark(); }
  std::unique_ptr<HostCopy> start_copy_to_host(const Tensor& tensor,
                                               const WorkMark& after) override {
    return copies_->start_copy_to_host(tensor, after);
  }
  Tensor copy_to_device(const Tensor& host, double) override {
    return copies_->copy_to_device(host);
  }
  void copy_into(Tensor& on_device, const Tensor& host, double) override {
    copies_->copy_into(on_device, host);
  }
  Tensor make_host_tensor(at::IntArrayRef sizes, c10::ScalarType dtype) const override {
    return StreamCopies::make_host_tensor(sizes, dtype);
  }

 private:
  static std::optional<Chip> copy_of(const Chip* chip) {
    return chip == nullptr ? std::nullopt : std::optional<Chip>(*chip);
  }

  std::string name_;
  c10::Device device_;
  DeviceProperties properties_;
  const std::optional<Chip> chip_;  // a copy: a caller may drop the catalogue; empty if unknown
  bool has_bf16_ = false;
  std::optional<StreamCopies> copies_;  // once the device is known to work
};

}  // namespace

int num_cuda_devices() {
  return torch::cuda::is_available() ? static_cast<int>(torch::cuda::device_count()) : 0;
}

std::unique_ptr<Device> open_cuda(const std::string& name,
                                  int device_idx,
                                  const Catalogue& catalogue) {
  const Vendor& vendor = cuda_shaped_vendor_here();
  const int num_devices = num_cuda_devices();
  if (num_devices == 0) {
    fail(
        "{}: this libtorch sees no CUDA device; it needs a libtorch built with CUDA "
        "(libtorch_cuda.so) and a driver that works: {}",
        name,
        vendor.how_to_get);
  }
  if (device_idx >= num_devices) {
    fail_usage("{}: this machine has {} CUDA devices, counted from 0", name, num_devices);
  }
  return std::make_unique<Cuda>(name, device_idx, vendor, catalogue);
}

}  // namespace pelago::chips
