// What the tests of the kernels share: tensors with fixed random values, their f64 twins, and the
// distance between the two.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "chips/reference/reference.h"
#include "chips/torch.h"

namespace pelago::chips {

inline Tensor random_tensor(at::IntArrayRef shape,
                            c10::ScalarType dtype = at::kFloat,
                            double spread = 1.0,
                            uint64_t seed = 1) {
  auto generator = at::detail::createCPUGenerator(seed);
  return (at::randn(shape, generator, at::kFloat) * spread).to(dtype);
}

inline reference::Values values_of(const Tensor& tensor) {
  const Tensor wide = tensor.detach().to(at::kDouble).contiguous();
  return {wide.data_ptr<double>(), wide.data_ptr<double>() + wide.numel()};
}

/// Largest difference over the largest magnitude wanted (or over floor, where what is wanted may
/// all but vanish); infinite if sizes or finiteness differ.
inline double distance(const Tensor& actual,
                       const reference::Values& wanted,
                       double floor = 1e-30) {
  const reference::Values values = values_of(actual);
  if (values.size() != wanted.size()) return INFINITY;
  double largest = floor;
  double difference = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) return INFINITY;
    largest = std::max(largest, std::abs(wanted[i]));
    difference = std::max(difference, std::abs(values[i] - wanted[i]));
  }
  return difference / largest;
}

/// Arithmetic in f32 loses a few of its 24 bits over sums of some hundred terms; bf16 keeps 8 bits
/// of each result (2^-9 = 2e-3 by rounding) and matmuls round their bf16 inputs once more.
inline double tolerance_of(c10::ScalarType dtype) {
  if (dtype == at::kFloat) return 2e-6;
  return dtype == at::kHalf ? 2e-3 : 1e-2;
}

}  // namespace pelago::chips
