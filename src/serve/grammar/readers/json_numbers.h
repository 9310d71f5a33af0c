// Decimal numbers between bounds, as patterns.
#pragma once

#include <cstdint>
#include <optional>

#include "serve/grammar/patterns.h"

namespace pelago::serve {

struct NumberBounds {
  std::optional<int64_t> min, max;  // both included
};

/// Integers without leading zeros; unbounded ones have at most 18 digits.
Patterns::Id integer_pattern(const NumberBounds& bounds, Patterns& patterns);
/// Numbers of JSON; with an exponent only where there are no bounds.
Patterns::Id number_pattern(const NumberBounds& bounds, Patterns& patterns);

}  // namespace pelago::serve
