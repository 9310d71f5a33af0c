// What each rank brings to a sum, and how sums are compared.
#pragma once

#include <cmath>
#include <cstring>

#include "base/rng.h"
#include "chips/torch.h"

namespace pelago::chips {

/// Values over nine powers of ten (four in fp16), so that another order of adding gives other
/// bits. [N]
inline Tensor rank_values(int rank, int64_t num_values, c10::ScalarType dtype) {
  Rng rng = Rng(11).fork("values", static_cast<uint64_t>(rank));
  Tensor values = torch::empty({num_values}, torch::kFloat64);
  for (int64_t i = 0; i < num_values; ++i) {
    const double scale = dtype == torch::kHalf ? rng.next_uniform() * 4 : rng.next_uniform() * 9;
    values.data_ptr<double>()[i] = rng.next_normal() * std::pow(10.0, scale - 4);
  }
  return values.to(dtype);
}

/// Bits, so that NaN equals itself and zeros of two signs differ.
inline bool has_bits_of(const Tensor& left, const Tensor& right) {
  return left.nbytes() == right.nbytes() &&
         std::memcmp(left.data_ptr(), right.data_ptr(), left.nbytes()) == 0;
}

}  // namespace pelago::chips
