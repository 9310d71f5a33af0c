// Twins of the kernels that work row by row.
#include <cmath>

#include "chips/reference/reference.h"

namespace pelago::chips::reference {
namespace {

double inverse_rms(const double* row, size_t num_columns, double eps) {
  double sum = 0;
  for (size_t i = 0; i < num_columns; ++i) sum += row[i] * row[i];
  return 1 / std::sqrt(sum / static_cast<double>(num_columns) + eps);
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace

Values rms_norm(const Values& x, const Values& weight, double eps) {
  const size_t num_columns = weight.size();
  Values y(x.size());
  for (size_t begin = 0; begin < x.size(); begin += num_columns) {
    const double scale = inverse_rms(&x[begin], num_columns, eps);
    for (size_t i = 0; i < num_columns; ++i) y[begin + i] = x[begin + i] * scale * weight[i];
  }
  return y;
}

NormGradients rms_norm_backward(const Values& grad_y,
                                const Values& x,
                                const Values& weight,
                                double eps) {
  const size_t num_columns = weight.size();
  NormGradients grads{Values(x.size()), Values(num_columns)};
  for (size_t begin = 0; begin < x.size(); begin += num_columns) {
    const double scale = inverse_rms(&x[begin], num_columns, eps);
    double along = 0;
    for (size_t i = 0; i < num_columns; ++i) {
      const double normed = x[begin + i] * scale;
      along += grad_y[begin + i] * weight[i] * normed / static_cast<double>(num_columns);
      grads.weight[i] += grad_y[begin + i] * normed;
    }
    for (size_t i = 0; i < num_columns; ++i) {
      const double normed = x[begin + i] * scale;
      grads.x[begin + i] = scale * (grad_y[begin + i] * weight[i] - normed * along);
    }
  }
  return grads;
}

Values rope(
    const Values& x, const Values& cos, const Values& sin, const HeadShape& shape, bool backward) {
  Values y(x.size());
  const auto half = static_cast<size_t>(shape.head_dim / 2);
  size_t head = 0;
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (size_t t = 0; t < static_cast<size_t>(shape.tokens); ++t) {
      for (int64_t h = 0; h < shape.heads; ++h, head += 2 * half) {
        for (size_t i = 0; i < half; ++i) {
          const double c = cos[t * half + i];
          const double s = backward ? -sin[t * half + i] : sin[t * half + i];
          y[head + i] = x[head + i] * c - x[head + half + i] * s;
          y[head + half + i] = x[head + half + i] * c + x[head + i] * s;
        }
      }
    }
  }
  return y;
}

Values swiglu(const Values& gate_up, int64_t intermediate) {
  const auto width = static_cast<size_t>(intermediate);
  Values y(gate_up.size() / 2);
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t gate_idx = i / width * 2 * width + i % width;
    const double gate = gate_up[gate_idx];
    y[i] = gate * sigmoid(gate) * gate_up[gate_idx + width];
  }
  return y;
}

Values swiglu_backward(const Values& grad_y, const Values& gate_up, int64_t intermediate) {
  const auto width = static_cast<size_t>(intermediate);
  Values grad(gate_up.size());
  for (size_t i = 0; i < grad_y.size(); ++i) {
    const size_t gate_idx = i / width * 2 * width + i % width;
    const double gate = gate_up[gate_idx];
    const double s = sigmoid(gate);
    grad[gate_idx] = grad_y[i] * gate_up[gate_idx + width] * s * (1 + gate * (1 - s));
    grad[gate_idx + width] = grad_y[i] * gate * s;
  }
  return grad;
}

CrossEntropy cross_entropy(const Values& hidden,
                           const Values& head,
                           std::span<const int64_t> targets,
                           int64_t hidden_size) {
  const auto width = static_cast<size_t>(hidden_size);
  const size_t vocab = head.size() / width;
  CrossEntropy result{0, Values(hidden.size()), Values(head.size())};
  for (size_t n = 0; n < targets.size(); ++n) {
    if (targets[n] == -100) continue;
    Values exponentials(vocab);
    double largest = -INFINITY;
    for (size_t j = 0; j < vocab; ++j) {
      for (size_t i = 0; i < width; ++i) {
        exponentials[j] += hidden[n * width + i] * head[j * width + i];
      }
      largest = std::max(largest, exponentials[j]);
    }
    const auto target = static_cast<size_t>(targets[n]);
    const double target_logit = exponentials[target];
    double sum = 0;
    for (double& value : exponentials) sum += value = std::exp(value - largest);
    result.loss += std::log(sum) + largest - target_logit;
    for (size_t j = 0; j < vocab; ++j) {
      const double grad = exponentials[j] / sum - (j == target ? 1 : 0);
      for (size_t i = 0; i < width; ++i) {
        result.grad_hidden[n * width + i] += grad * head[j * width + i];
        result.grad_head[j * width + i] += grad * hidden[n * width + i];
      }
    }
  }
  return result;
}

}  // namespace pelago::chips::reference
