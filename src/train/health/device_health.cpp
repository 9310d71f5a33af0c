#include "train/health/device_health.h"

#include <fmt/format.h>

#include "base/clock.h"

namespace pelago::train {

namespace {
constexpr double kIdleEveryS = 5;  // 10 ms each: a chip that waits a lot is not kept busy by it

/// How the plan wants its emulated devices, with the faults on order of this one.
chips::EmulationOptions emulation_of(const plan::Plan& plan, const plan::DevicePlan& device) {
  chips::EmulationOptions options;
  for (const std::string& fault : device.faults) {
    options.faults.push_back(chips::parse_fault(fault));
  }
  if (plan.emulation_slowdown > 0) options.slowdown = plan.emulation_slowdown;
  if (device.memory_bytes > 0) options.memory_bytes = device.memory_bytes;
  return options;
}

}  // namespace

DeviceHealth::DeviceHealth(chips::Device& device, bool is_on) : device_(&device) {
  if (is_on) test_ = std::make_unique<chips::KnownAnswerTest>(device);
}

void DeviceHealth::examine() {
  if (!test_) return;
  const std::string fault = chips::first_fault(test_->run());
  examined_s_ = steady_now_s();
  if (!fault.empty()) {
    throw DeviceFault(fmt::format("{} computes wrong: {}", device_->name(), fault));
  }
}

void DeviceHealth::examine_when_idle(double now_s) {
  if (now_s - examined_s_ >= kIdleEveryS) examine();
}

OpenDevice open_examined(const plan::Plan& plan, const plan::DevicePlan& share, bool is_on) {
  OpenDevice opened;
  opened.device =
      chips::open_device(share.device, chips::Catalogue::built_in(), emulation_of(plan, share));
  opened.health = std::make_unique<DeviceHealth>(*opened.device, is_on);
  opened.health->examine();
  return opened;
}

}  // namespace pelago::train
