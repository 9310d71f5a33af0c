// A model with all that its training keeps, in one process without ranks: for benchmarks of the
// arithmetic alone.
#pragma once

#include <algorithm>
#include <cmath>

#include "base/rng.h"
#include "chips/kernels.h"
#include "model/transformer.h"

namespace pelago::bench {

/// bf16 weights beside f32 masters, gradients summed in f32; all [N].
struct LoneModel {
  LoneModel(const model::ModelConfig& config, const Rng& rng)
      : master(model::initial_weights(config, rng)),
        weights(master.to(torch::kBFloat16)),
        m(torch::zeros_like(master)),
        v(torch::zeros_like(master)),
        gradient(torch::zeros_like(master)),
        parameters(config, weights),
        transformer(config, parameters) {}

  /// Adds the gradient of a sum of token losses.
  void add_gradient(const Tensor& loss_sum) {
    loss_sum.backward();
    parameters.move_gradients_into(gradient);
  }
  /// What makes the gradient's sum over so many tokens a mean of norm 1 at most.
  double gradient_scale(double num_tokens) const {
    const double norm = std::sqrt(chips::sum_of_squares(gradient)) / num_tokens;
    return std::min(1.0, 1.0 / norm) / num_tokens;
  }

  Tensor master, weights, m, v, gradient;
  model::Parameters parameters;
  model::Transformer transformer;
};

}  // namespace pelago::bench
