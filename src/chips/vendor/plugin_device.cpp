#include "chips/vendor/plugin_device.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <stdlib.h>

#include <optional>

#include "base/error.h"
#include "chips/torch.h"
#include "chips/torch_compat.h"
#include "chips/vendor/plugin.h"
#include "chips/vendor/search.h"
#include "chips/vendor/trial.h"

namespace pelago::chips {
namespace {

Plugin load_plugin(const std::string& name, const Vendor& vendor) {
  for (const auto& [variable, value] : vendor.environment) {
    ::setenv(variable.c_str(), value.c_str(), /*overwrite=*/0);
  }
  const std::vector<std::filesystem::path> folders = library_folders(vendor);
  for (const std::string& library : vendor.libraries) {
    if (const auto found = find_library(library, folders)) {
      return Plugin({.who = name, .file = *found, .remedy = vendor.how_to_get});
    }
  }
  return Plugin({.who = name,
                 .file = vendor.libraries.front(),
                 .remedy = vendor.how_to_get,
                 .looked_in = folders});
}

class PluginDevice final : public Device {
 public:
  PluginDevice(std::string name, int device_idx, const Vendor& vendor, const Catalogue& catalogue)
      : name_(std::move(name)),
        device_(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device_idx)),
        vendor_(vendor),
        plugin_(load_plugin(name_, vendor)) {
    if (!vendor_.slot_name.empty()) name_private_backend(vendor_.slot_name.c_str());
    if (vendor_.initialise != nullptr) {
      vendor_.initialise(plugin_, vendor_.torch_device + ":" + std::to_string(device_idx));
    }
    const c10::impl::VirtualGuardImpl guard(device_.type());
    const int num_devices = guard.deviceCount();
    if (num_devices == 0) {
      fail("{}: the plug-in {} sees no device; see that `{}` shows one",
           name_,
           plugin_.file().string(),
           vendor_.tool);
    }
    if (device_idx >= num_devices) {
      fail_usage("{}: this machine has {} such devices, counted from 0", name_, num_devices);
    }
    guard.setDevice(device_);
    hold_a_tensor(name_, device_, vendor_);
    if (vendor_.read_properties != nullptr) properties_ = vendor_.read_properties(device_idx);
    if (const Chip* chip = match_chip(catalogue, vendor_.torch_device, properties_)) chip_ = *chip;
    has_bf16_ = chip_ ? chip_->has_bf16 : computes_in_bf16(device_);
  }
  PluginDevice(const PluginDevice&) = delete;
  PluginDevice& operator=(const PluginDevice&) = delete;
  ~PluginDevice() override {
    if (vendor_.finish != nullptr) vendor_.finish(plugin_);
  }

  c10::Device torch_device() const override { return device_; }
  const std::string& name() const override { return name_; }
  const Chip* chip() const override { return chip_ ? &*chip_ : nullptr; }
  c10::ScalarType training_dtype() const override {
    return has_bf16_ ? c10::kBFloat16 : c10::kHalf;
  }
  void synchronize() override {
    if (can_wait_for_stream_) {
      try {
        const c10::impl::VirtualGuardImpl guard(device_.type());
        return guard.synchronizeStream(guard.getStream(device_));
      } catch (const c10::Error&) {
        can_wait_for_stream_ = false;  // the plug-in left it out; a copy waits as well
      }
    }
    at::zeros({1}, at::TensorOptions().device(device_)).cpu();
  }
  DeviceStats stats() const override { return {}; }
  void reset_stats() override {}
  int64_t memory_bytes() const override {
    if (properties_.memory_bytes > 0 || !chip_) return properties_.memory_bytes;
    return static_cast<int64_t>(chip_->usable_memory_gib * 0x1p30);
  }

 private:
  std::string name_;
  c10::Device device_;
  const Vendor& vendor_;  // outlives me
  Plugin plugin_;
  DeviceProperties properties_;
  std::optional<Chip> chip_;  // a copy: a caller may drop the catalogue; empty if unknown
  bool has_bf16_ = false;
  bool can_wait_for_stream_ = true;
};

}  // namespace

std::unique_ptr<Device> open_plugin_device(const std::string& name,
                                           int device_idx,
                                           const Vendor& vendor,
                                           const Catalogue& catalogue) {
  return std::make_unique<PluginDevice>(name, device_idx, vendor, catalogue);
}

}  // namespace pelago::chips
