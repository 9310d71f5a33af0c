#include "model/transformer.h"

#include "base/error.h"
#include "chips/kernels.h"

namespace pelago::model {

Transformer::Transformer(const ModelConfig& config, const Parameters& parameters)
    : config_(config), parameters_(&parameters), rope_(config, parameters.flat().device()) {
  PELAGO_ASSERT(static_cast<int64_t>(parameters.blocks().size()) == config.num_hidden_layers,
                "the parameters are those of this config");
}

Tensor Transformer::hidden_states(const Tensor& tokens, KvCache* cache) const {
  const std::vector<BlockWeights>& blocks = parameters_->blocks();
  const RopeTable::Rows rope =
      rope_.rows(cache == nullptr ? 0 : cache->num_tokens(), tokens.size(1));
  BlockState state{.fed = parameters_->embed(tokens.reshape({-1})), .stream = {}};
  for (size_t layer_idx = 0; layer_idx < blocks.size(); ++layer_idx) {
    state = run_block(config_,
                      blocks[layer_idx],
                      state,
                      {.rope = rope, .cache = cache, .layer_idx = static_cast<int64_t>(layer_idx)});
  }
  return final_norm(config_, parameters_->final_norm(), state);
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
  cache.advance(tokens.size(1));
  const Tensor last = hidden.view({tokens.size(0), tokens.size(1), -1}).select(1, -1);  // [B,D]
  return at::mm(last, parameters_->head().t()).to(at::kFloat);
}

}  // namespace pelago::model
