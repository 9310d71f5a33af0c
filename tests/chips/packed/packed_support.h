// What tests of packed products and paged attention compare with: plain sums in f64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/rng.h"
#include "chips/packed/packed_matrix.h"

namespace pelago::chips::packed {

/// Normal, of mean 0 and variance 1.
inline std::vector<float> random_values(size_t num_values, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(num_values);
  for (float& value : values) value = static_cast<float>(rng.next_normal());
  return values;
}

/// Largest difference of c [num_rows][c_stride] from x times the matrix, plus added, over the
/// largest value.
inline double product_error(const PackedMatrix& matrix,
                            const std::vector<float>& x,
                            const std::vector<float>& c,
                            size_t num_rows,
                            size_t c_stride,
                            double added) {
  const auto inputs = static_cast<size_t>(matrix.num_inputs());
  std::vector<float> weights(inputs);
  double difference = 0, largest = 0;
  for (int64_t output = 0; output < matrix.num_outputs(); ++output) {
    matrix.read_row(output, weights);
    for (size_t row = 0; row < num_rows; ++row) {
      double sum = added;
      for (size_t i = 0; i < inputs; ++i) sum += double{x[row * inputs + i]} * double{weights[i]};
      const double actual = double{c[row * c_stride + static_cast<size_t>(output)]};
      difference = std::max(difference, std::isfinite(actual) ? std::abs(actual - sum) : INFINITY);
      largest = std::max(largest, std::abs(sum));
    }
  }
  return difference / largest;
}

/// One query's attention in f64.
inline std::vector<double> plain_attention(const std::vector<float>& keys,
                                           const std::vector<float>& values,
                                           const float* query,
                                           size_t num_keys,
                                           size_t head_dim) {
  std::vector<double> weights(num_keys), out(head_dim, 0.0);
  double largest = -1e300, total = 0;
  for (size_t key = 0; key < num_keys; ++key) {
    for (size_t i = 0; i < head_dim; ++i) {
      weights[key] += double{query[i]} * double{keys[key * head_dim + i]};
    }
    weights[key] /= std::sqrt(static_cast<double>(head_dim));
    largest = std::max(largest, weights[key]);
  }
  for (double& weight : weights) total += weight = std::exp(weight - largest);
  for (size_t key = 0; key < num_keys; ++key) {
    for (size_t i = 0; i < head_dim; ++i) {
      out[i] += weights[key] / total * double{values[key * head_dim + i]};
    }
  }
  return out;
}

}  // namespace pelago::chips::packed
