// What the tests of the line between sites wait for.
#pragma once

#include <optional>
#include <utility>

#include "base/clock.h"
#include "sites/transport/transport.h"

namespace pelago::sites {

/// The next frame, however busy the machine is; none after a minute. Lost connections on the way
/// are left out.
inline std::optional<Frame> next_frame(Transport& end, double timeout_s = 60) {
  const double deadline_s = steady_now_s() + timeout_s;
  while (steady_now_s() < deadline_s) {
    auto arrival = end.receive(deadline_s - steady_now_s());
    if (arrival && arrival->frame) return std::move(arrival->frame);
  }
  return std::nullopt;
}

}  // namespace pelago::sites
