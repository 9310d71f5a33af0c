// Twins of the kernels that work on flat vectors: the optimizer's and the quantiser's.
#include <algorithm>
#include <cmath>

#include "chips/reference/reference.h"

namespace pelago::chips::reference {
namespace {

constexpr auto kBlock = static_cast<size_t>(kQuantBlock);

float largest_magnitude(std::span<const float> values) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

/// Row-major, with plain loops.
struct Matrix {
  size_t num_rows = 0, num_columns = 0;
  Values values;
  double at(size_t row, size_t column) const { return values[row * num_columns + column]; }
};

Matrix product(const Matrix& a, const Matrix& b) {
  Matrix result{a.num_rows, b.num_columns, Values(a.num_rows * b.num_columns)};
  for (size_t row = 0; row < a.num_rows; ++row) {
    for (size_t column = 0; column < b.num_columns; ++column) {
      double& sum = result.values[row * b.num_columns + column];
      for (size_t i = 0; i < a.num_columns; ++i) sum += a.at(row, i) * b.at(i, column);
    }
  }
  return result;
}

Matrix transposed(const Matrix& a) {
  Matrix result{a.num_columns, a.num_rows, {}};
  for (size_t row = 0; row < a.num_columns; ++row) {
    for (size_t column = 0; column < a.num_rows; ++column)
      result.values.push_back(a.at(column, row));
  }
  return result;
}

/// a x + (b x x' + c x x' x x') x, whichever side of x is longer.
Matrix newton_schulz(const Matrix& x) {
  const Matrix square = product(x, transposed(x));
  Matrix factor = product(square, square);
  for (size_t i = 0; i < factor.values.size(); ++i) {
    factor.values[i] = 2.0315 * factor.values[i] - 4.7750 * square.values[i];
  }
  Matrix result = product(factor, x);
  for (size_t i = 0; i < result.values.size(); ++i) result.values[i] += 3.4445 * x.values[i];
  return result;
}

}  // namespace

AdamwState adamw(AdamwState state, double grad, const AdamWOptions& options) {
  grad *= options.grad_scale;
  state.m = options.beta1 * state.m + (1 - options.beta1) * grad;
  state.v = options.beta2 * state.v + (1 - options.beta2) * grad * grad;
  const auto step = static_cast<double>(options.step);
  const double mean = state.m / (1 - std::pow(options.beta1, step));
  const double square = state.v / (1 - std::pow(options.beta2, step));
  state.master -=
      options.lr * (mean / (std::sqrt(square) + options.eps) + options.weight_decay * state.master);
  return state;
}

MuonState muon(MuonState state, const Values& grad, int64_t num_rows, const MuonOptions& options) {
  Matrix x{static_cast<size_t>(num_rows), grad.size() / static_cast<size_t>(num_rows), {}};
  for (size_t i = 0; i < grad.size(); ++i) {
    const double scaled = options.grad_scale * grad[i];
    state.m[i] = options.momentum * state.m[i] + scaled;
    x.values.push_back(options.momentum * state.m[i] + scaled);
  }
  const double norm = std::sqrt(sum_of_squares(x.values));
  for (double& value : x.values) value /= std::max(norm, 1e-20);
  for (int i = 0; i < 5; ++i) x = newton_schulz(x);
  const auto longest = static_cast<double>(std::max(x.num_rows, x.num_columns));
  const double rate = options.lr * 0.2 * std::sqrt(longest);
  for (size_t i = 0; i < grad.size(); ++i) {
    state.master[i] -= options.lr * options.weight_decay * state.master[i] + rate * x.values[i];
  }
  return state;
}

double sum_of_squares(const Values& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return sum;
}

QuantisedVector quantise(std::span<const float> values, int bits) {
  const float largest_level = bits == 4 ? 7 : 127;
  QuantisedVector result;
  result.bits = bits;
  result.num_values = static_cast<int64_t>(values.size());
  result.payload.resize(bits == 8 ? values.size() : (values.size() + 1) / 2);
  for (size_t i = 0; i < values.size(); ++i) {
    if (i % kBlock == 0) {
      const auto block = values.subspan(i, std::min(kBlock, values.size() - i));
      result.scales.push_back(largest_magnitude(block) / largest_level);
    }
    const float scale = result.scales.back();
    const float quotient = scale > 0 ? values[i] / scale : 0;
    const auto level = static_cast<int>(
        std::nearbyint(std::min(std::max(quotient, -largest_level), largest_level)));
    if (bits == 8) {
      result.payload[i] = static_cast<uint8_t>(level);
    } else {
      result.payload[i / 2] =
          static_cast<uint8_t>(result.payload[i / 2] | (level & 15) << (i % 2 * 4));
    }
  }
  return result;
}

void dequantise(const QuantisedVector& quantised, std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    int level = 0;
    if (quantised.bits == 8) {
      level = static_cast<int8_t>(quantised.payload[i]);
    } else {
      const int nibble = (quantised.payload[i / 2] >> (i % 2 * 4)) & 15;
      level = nibble >= 8 ? nibble - 16 : nibble;
    }
    out[i] = static_cast<float>(level) * quantised.scales[i / kBlock];
  }
}

std::vector<uint8_t> quantise_for_line(std::span<const float> values, int bits) {
  constexpr auto kWide = static_cast<size_t>(kLineBlock);
  const float largest_level = bits == 4 ? 7 : 127;
  const size_t num_scales = (values.size() + kWide - 1) / kWide;
  std::vector<uint8_t> result(line_bytes(values.size(), bits));
  for (size_t i = 0; i < values.size(); ++i) {
    uint8_t& code = result[i / kWide];
    if (i % kWide == 0) {
      const auto block = values.subspan(i, std::min(kWide, values.size() - i));
      const float wanted = largest_magnitude(block) / largest_level;
      // The least code that will do, found by trying.
      code = wanted > 0 ? 1 : 0;
      while (code != 0 && code < 255 && line_scale(code) < wanted) ++code;
    }
    const float scale = line_scale(code);
    const float quotient = scale > 0 ? values[i] / scale : 0;
    const auto level = static_cast<int>(
        std::nearbyint(std::min(std::max(quotient, -largest_level), largest_level)));
    uint8_t& byte = result[num_scales + (bits == 8 ? i : i / 2)];
    byte = static_cast<uint8_t>(bits == 8 ? level : byte | (level & 15) << (i % 2 * 4));
  }
  return result;
}

}  // namespace pelago::chips::reference
