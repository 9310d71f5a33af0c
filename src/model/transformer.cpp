// Forward pass. Tokens of all sequences lie in one [B*T,D] matrix, so that every projection is one
// large matmul; only attention sees [B,T,H,E]. The residual stream and the norm that reads it are
// one operator (add_rms_norm), so a block makes two passes over [B*T,D] and not six.
#include "model/transformer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "chips/kernels.h"

namespace pelago::model {

namespace {

/// x: [N,In]; weight: [Out,In]; bias: [Out] or undefined. Returns [N,Out].
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  return bias.defined() ? at::addmm(bias, x, weight.t()) : at::mm(x, weight.t());
}

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

KvCache::KvCache(const ModelConfig& config,
                 int64_t batch,
                 c10::Device device,
                 c10::ScalarType dtype) {
  constexpr int64_t kFirstTokens = 64;
  const std::vector<int64_t> shape = {
      batch, kFirstTokens, config.num_key_value_heads, config.head_dim};
  const auto options = at::TensorOptions().device(device).dtype(dtype);
  for (int64_t layer_idx = 0; layer_idx < config.num_hidden_layers; ++layer_idx) {
    keys_.push_back(at::empty(shape, options));
    values_.push_back(at::empty(shape, options));
  }
}

KvCache::KeysValues KvCache::append(int64_t layer_idx, const Tensor& keys, const Tensor& values) {
  const int64_t num_new = keys.size(1);
  const int64_t num_all = num_tokens_ + num_new;
  const auto put = [&](Tensor& kept, const Tensor& fresh) {
    if (kept.size(1) < num_all) {
      std::vector<int64_t> shape = kept.sizes().vec();
      shape[1] = std::max(num_all, 2 * shape[1]);
      const Tensor grown = at::empty(shape, kept.options());
      grown.narrow(1, 0, num_tokens_).copy_(kept.narrow(1, 0, num_tokens_));
      kept = grown;
    }
    kept.narrow(1, num_tokens_, num_new).copy_(fresh);
    return kept.narrow(1, 0, num_all);
  };
  const auto layer = static_cast<size_t>(layer_idx);
  return {put(keys_[layer], keys), put(values_[layer], values)};
}

Transformer::Transformer(const ModelConfig& config, const Parameters& parameters)
    : config_(config), parameters_(&parameters), rope_(config, parameters.flat().device()) {
  PELAGO_ASSERT(static_cast<int64_t>(parameters.blocks().size()) == config.num_hidden_layers,
                "the parameters are those of this config");
}

Tensor Transformer::attend(const BlockWeights& weights,
                           const Tensor& normed,
                           const RopeTable::Rows& rope,
                           int64_t layer_idx,
                           KvCache* cache) const {
  const int64_t num_tokens = rope.cos.size(0);
  const int64_t batch = normed.size(0) / num_tokens;
  const int64_t head_dim = config_.head_dim;
  const int64_t query = config_.num_attention_heads * head_dim;
  const int64_t key = config_.num_key_value_heads * head_dim;
  const Tensor qkv = linear(normed, weights.qkv, weights.qkv_bias);  // [B*T,(H+2K)*E]
  // One split, not three slices: its backward is one concatenation, theirs would be three padded
  // tensors and two additions.
  const std::vector<Tensor> parts = qkv.split_with_sizes({query, key, key}, 1);
  const auto as_heads = [&](const Tensor& part) {
    return part.view({batch, num_tokens, part.size(1) / head_dim, head_dim});
  };
  Tensor q = as_heads(parts[0]);  // [B,T,H,E]
  Tensor k = as_heads(parts[1]);  // [B,T,K,E]
  Tensor v = as_heads(parts[2]);  // [B,T,K,E]
  if (config_.qk_norm) {
    q = chips::rms_norm(q, weights.q_norm, config_.rms_norm_eps);
    k = chips::rms_norm(k, weights.k_norm, config_.rms_norm_eps);
  }
  q = chips::apply_rope(q, rope.cos, rope.sin);
  k = chips::apply_rope(k, rope.cos, rope.sin);
  if (cache != nullptr) {
    auto [all_keys, all_values] = cache->append(layer_idx, k, v);
    k = all_keys;
    v = all_values;
  }
  const Tensor mixed = chips::attention(q, k, v).reshape({normed.size(0), query});
  return linear(mixed, weights.output, Tensor());
}

Tensor Transformer::hidden_states(const Tensor& tokens, KvCache* cache) const {
  const std::vector<BlockWeights>& blocks = parameters_->blocks();
  const double eps = config_.rms_norm_eps;
  const RopeTable::Rows rope =
      rope_.rows(cache == nullptr ? 0 : cache->num_tokens(), tokens.size(1));
  Tensor stream = parameters_->embed(tokens.reshape({-1}));                 // [B*T,D]
  Tensor normed = chips::rms_norm(stream, blocks.front().input_norm, eps);  // [B*T,D]
  for (size_t layer_idx = 0; layer_idx < blocks.size(); ++layer_idx) {
    const BlockWeights& weights = blocks[layer_idx];
    const Tensor attended = attend(weights, normed, rope, static_cast<int64_t>(layer_idx), cache);
    std::tie(normed, stream) =
        chips::add_rms_norm(attended, stream, weights.post_attention_norm, eps);
    const Tensor gate_up = linear(normed, weights.gate_up, Tensor());           // [B*T,2F]
    const Tensor fed = linear(chips::swiglu(gate_up), weights.down, Tensor());  // [B*T,D]
    const bool is_last = layer_idx + 1 == blocks.size();
    const Tensor& next_norm =
        is_last ? parameters_->final_norm() : blocks[layer_idx + 1].input_norm;
    std::tie(normed, stream) = chips::add_rms_norm(fed, stream, next_norm, eps);
  }
  return normed;
}

Tensor Transformer::loss_sum(const Tensor& tokens, const Tensor& targets) const {
  TORCH_CHECK(tokens.dim() == 2 && tokens.sizes() == targets.sizes(),
              "loss_sum: tokens ",
              tokens.sizes(),
              " and targets ",
              targets.sizes(),
              " must both be [B,T]");
  const Tensor hidden = hidden_states(tokens, nullptr);  // [B*T,D]
  return chips::cross_entropy_sum(hidden, parameters_->head(), targets.reshape({-1}));
}

Tensor Transformer::next_logits(const Tensor& tokens, KvCache& cache) const {
  TORCH_CHECK(tokens.dim() == 2 && tokens.size(1) > 0,
              "next_logits: tokens ",
              tokens.sizes(),
              " must be [B,T_new] with T_new > 0");
  const torch::NoGradGuard no_grad;
  const Tensor hidden = hidden_states(tokens, &cache);
  cache.num_tokens_ += tokens.size(1);
  const Tensor last = hidden.view({tokens.size(0), tokens.size(1), -1}).select(1, -1);  // [B,D]
  return at::mm(last, parameters_->head().t()).to(at::kFloat);
}

}  // namespace pelago::model
