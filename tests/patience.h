// What tests that look at the clock do about machines that are busy with something else.
#pragma once

#include <functional>

namespace pelago::testing {

/// Whether attempt(scale) is true at some scale of 1, 2, 4, ... 64, by which it lengthens every
/// time that it gives. A busy machine delays by what it likes, however long the times are; code
/// that waits where it should not waits in proportion. So the first shows at small scales only.
inline bool holds_at_some_pace(const std::function<bool(double scale)>& attempt) {
  for (double scale = 1; scale <= 64; scale *= 2) {
    if (attempt(scale)) return true;
  }
  return false;
}

}  // namespace pelago::testing
