#include "model/layers/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace pelago::model {

namespace {

/// Llama 3.1's stretch (transformers, modeling_rope_utils.py, _compute_llama3_parameters).
double stretched(double frequency, const RopeScaling& scaling) {
  const double original = static_cast<double>(scaling.original_max_position_embeddings);
  const double turns = original * frequency / (2 * std::numbers::pi);
  if (turns < scaling.low_freq_factor) return frequency / scaling.factor;
  if (turns > scaling.high_freq_factor) return frequency;
  const double smooth =
      (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1 - smooth) * frequency / scaling.factor + smooth * frequency;
}

}  // namespace

RopeTable::RopeTable(const ModelConfig& config, c10::Device device) : device_(device) {
  for (int64_t pair_idx = 0; pair_idx < config.head_dim / 2; ++pair_idx) {
    const double exponent =
        2.0 * static_cast<double>(pair_idx) / static_cast<double>(config.head_dim);
    const double frequency = std::pow(config.rope_theta, -exponent);
    frequencies_.push_back(config.rope_scaling ? stretched(frequency, *config.rope_scaling)
                                               : frequency);
  }
}

RopeTable::Rows RopeTable::rows(int64_t begin, int64_t num_positions) {
  const int64_t end = begin + num_positions;
  const int64_t num_made = cos_.defined() ? cos_.size(0) : 0;
  if (end > num_made) {
    const torch::NoGradGuard no_grad;
    const int64_t num_rows = std::max(end, 2 * num_made);
    const auto f64 = at::TensorOptions().dtype(at::kDouble);
    const Tensor frequencies =
        at::from_blob(frequencies_.data(), {static_cast<int64_t>(frequencies_.size())}, f64);
    const Tensor angles = at::arange(num_rows, f64).unsqueeze(1) * frequencies;  // [T,E/2]
    cos_ = angles.cos().to(at::kFloat).to(device_);
    sin_ = angles.sin().to(at::kFloat).to(device_);
  }
  return {cos_.narrow(0, begin, num_positions), sin_.narrow(0, begin, num_positions)};
}

}  // namespace pelago::model
