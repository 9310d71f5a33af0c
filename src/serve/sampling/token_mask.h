// Which tokens may come next: one bit a token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pelago::serve {

using TokenMask = std::vector<uint64_t>;  // [(V + 63) / 64]

inline TokenMask empty_mask(int64_t vocab_size) {
  return TokenMask(static_cast<size_t>(vocab_size + 63) / 64);
}
inline bool is_allowed(const TokenMask& mask, int32_t token) {
  const auto idx = static_cast<size_t>(token);
  return (mask[idx / 64] >> (idx % 64) & 1) != 0;
}
inline void allow(TokenMask& mask, int32_t token) {
  const auto idx = static_cast<size_t>(token);
  mask[idx / 64] |= uint64_t{1} << (idx % 64);
}
inline bool allows_any(const TokenMask& mask) {
  for (const uint64_t word : mask) {
    if (word != 0) return true;
  }
  return false;
}

}  // namespace pelago::serve
