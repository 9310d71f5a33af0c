#include "model/layers/block.h"

#include <tuple>

#include "chips/kernels.h"
#include "model/layers/tensor_parallel.h"

namespace pelago::model {

namespace {

/// x: [N,In]; weight: [Out,In]; bias: [Out] or undefined. Returns [N,Out].
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  return bias.defined() ? at::addmm(bias, x, weight.t()) : at::mm(x, weight.t());
}

/// normed: [B*T,D]. Returns [B*T,D]: with tensor parallelism, the part of this rank's heads.
Tensor attend(const ModelConfig& config,
              const BlockWeights& weights,
              const Tensor& normed,
              const BlockOptions& options) {
  const int64_t num_tokens = options.rope.cos.size(0);
  const int64_t batch = normed.size(0) / num_tokens;
  const int64_t head_dim = config.head_dim;
  const int64_t query = weights.output.size(1);
  const int64_t key = (weights.qkv.size(0) - query) / 2;
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
  if (config.qk_norm) {
    q = chips::rms_norm(q, weights.q_norm, config.rms_norm_eps);
    k = chips::rms_norm(k, weights.k_norm, config.rms_norm_eps);
  }
  q = chips::apply_rope(q, options.rope.cos, options.rope.sin);
  k = chips::apply_rope(k, options.rope.cos, options.rope.sin);
  if (options.cache != nullptr) {
    auto [all_keys, all_values] = options.cache->append(options.layer_idx, k, v);
    k = all_keys;
    v = all_values;
  }
  const Tensor mixed = chips::attention(q, k, v).reshape({normed.size(0), query});
  return linear(mixed, weights.output, Tensor());
}

/// {normed, stream} of the state.
std::pair<Tensor, Tensor> add_and_norm(const ModelConfig& config,
                                       const Tensor& weight,
                                       const BlockState& state) {
  if (state.stream.defined()) {
    return chips::add_rms_norm(state.fed, state.stream, weight, config.rms_norm_eps);
  }
  return {chips::rms_norm(state.fed, weight, config.rms_norm_eps), state.fed};
}

}  // namespace

BlockState run_block(const ModelConfig& config,
                     const BlockWeights& weights,
                     const BlockState& input,
                     const BlockOptions& options) {
  chips::Collective* const group = options.tensor_group;
  auto [normed, stream] = add_and_norm(config, weights.input_norm, input);
  const Tensor attended =
      scatter_sum(attend(config, weights, gather_tokens(normed, group), options), group);
  std::tie(normed, stream) =
      chips::add_rms_norm(attended, stream, weights.post_attention_norm, config.rms_norm_eps);
  const Tensor gate_up =
      linear(gather_tokens(normed, group), weights.gate_up, Tensor());        // [B*T,2F]
  const Tensor fed = linear(chips::swiglu(gate_up), weights.down, Tensor());  // [B*T,D]
  return {.fed = scatter_sum(fed, group), .stream = stream};
}

Tensor final_norm(const ModelConfig& config, const Tensor& weight, const BlockState& input) {
  return add_and_norm(config, weight, input).first;
}

}  // namespace pelago::model
