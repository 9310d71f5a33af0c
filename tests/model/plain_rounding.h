// Rounding as a model that computes in bf16 rounds, on doubles: for the plain transformer.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace pelago::model {

/// What is rounded on its way into a product; sums and everything between are exact.
enum class PlainRounding {
  kNone,
  kBf16,       // all inputs: of projections, queries, keys, values, weights of attention
  kInt8Cache,  // likewise, but keys and values are levels of 8 bits with a scale a head
};

/// To 8 bits of mantissa, to nearest even.
inline void round_plain(std::vector<double>& x, PlainRounding rounding) {
  if (rounding == PlainRounding::kNone) return;
  for (double& value : x) {
    int exponent = 0;
    const double mantissa = std::frexp(value, &exponent);
    value = std::ldexp(std::nearbyint(std::ldexp(mantissa, 8)), exponent - 8);
  }
}

/// A key or value as a cache keeps it. Returns the scale of its levels.
inline double keep_plain(std::vector<double>& x, PlainRounding rounding) {
  if (rounding != PlainRounding::kInt8Cache) {
    round_plain(x, rounding);
    return 1;
  }
  double top = 0;
  for (const double value : x) top = std::max(top, std::abs(value));
  for (double& value : x) value = top > 0 ? std::nearbyint(value * 127 / top) : 0;
  return top / 127;
}

}  // namespace pelago::model
