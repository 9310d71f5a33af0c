// Values to exchange, and whether two sites hold the same.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/rng.h"
#include "sites/exchange/global_state.h"

namespace pelago::sites {

inline std::vector<float> random_values(size_t num_values, uint64_t seed, double scale = 1) {
  Rng rng = Rng(seed).fork("values");
  std::vector<float> values(num_values);
  for (float& value : values) value = static_cast<float>(scale * rng.next_normal());
  return values;
}

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return hash_fragment(a, {}) == hash_fragment(b, {});
}

}  // namespace pelago::sites
