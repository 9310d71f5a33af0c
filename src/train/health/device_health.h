// Whether a rank's device still computes right: questions with known answers when it joins and
// when it has nothing else to do, and an answer to the supervisor's question whether it is stuck.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

#include "chips/checks/known_answer.h"
#include "chips/device.h"

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

}  // namespace pelago::train
