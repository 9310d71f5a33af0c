#pragma once

#include <span>

namespace pelago::train {

/// The whole model's state on the host, each f32 [N] in the model's order. Empty: not there.
struct HostState {
  std::span<float> master, m, v;
};

}  // namespace pelago::train
