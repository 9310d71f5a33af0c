#include "train/health/device_health.h"

#include <fmt/format.h>

#include "base/clock.h"

namespace pelago::train {

namespace {
constexpr double kIdleEveryS = 5;  // 10 ms each: a chip that waits a lot is not kept busy by it
}

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

}  // namespace pelago::train
