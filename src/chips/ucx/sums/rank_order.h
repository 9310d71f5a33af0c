// Adding the ranks' parts in rank order, so that the result has the same bits wherever and in
// whatever pieces it is made. Parts of 16 bits are added in f32 and rounded once.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <type_traits>

namespace pelago::chips {

template <typename T>
using WideOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// out[i] = parts[0][i] + parts[1][i] + ...; out may be one of the parts.
template <typename T>
void sum_in_rank_order(std::span<const T* const> parts, T* out, size_t num_values) {
  using Wide = WideOf<T>;
  constexpr size_t kBlock = 1024;  // a block of partial sums stays in the first-level cache
  std::array<Wide, kBlock> sums;
  for (size_t start = 0; start < num_values; start += kBlock) {
    const size_t count = std::min(kBlock, num_values - start);
    for (size_t i = 0; i < count; ++i) sums[i] = static_cast<Wide>(parts[0][start + i]);
    for (const T* part : parts.subspan(1)) {
      for (size_t i = 0; i < count; ++i) sums[i] += static_cast<Wide>(part[start + i]);
    }
    for (size_t i = 0; i < count; ++i) out[start + i] = static_cast<T>(sums[i]);
  }
}

}  // namespace pelago::chips
