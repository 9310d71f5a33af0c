// A rank's device, and whether it still computes right: questions with known answers when it joins
// and when it has nothing else to do.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "chips/checks/known_answer.h"
#include "chips/device.h"
#include "plan/plan.h"

namespace pelago::train {

/// The device answered, and wrongly: the site goes on without it.
class DeviceFault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class DeviceHealth {
 public:
  /// device outlives this. is_on: false asks nothing, ever.
  DeviceHealth(chips::Device& device, bool is_on);

  /// Throws DeviceFault saying which answer is wrong by how much.
  void examine();
  /// The same, unless it was done a moment ago.
  void examine_when_idle(double now_s);

 private:
  chips::Device* device_;
  std::unique_ptr<chips::KnownAnswerTest> test_;  // null: off
  double examined_s_ = 0;
};

/// A rank's device, examined.
struct OpenDevice {
  std::unique_ptr<chips::Device> device;
  std::unique_ptr<DeviceHealth> health;
};
/// share: of this plan. is_on: as of DeviceHealth. Throws DeviceFault, Failure or c10::Error.
OpenDevice open_examined(const plan::Plan& plan, const plan::DevicePlan& share, bool is_on);

}  // namespace pelago::train
