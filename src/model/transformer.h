// The decoder-only transformer of Llama 3 and Qwen 3, on whatever device its parameters lie.
// Training: loss_sum(tokens, targets).backward(), as often as there are microbatches, each followed
// by parameters.move_gradients_into(flat_gradient). Generation: next_logits with a KvCache.
#pragma once

#include <filesystem>
#include <vector>

#include "base/rng.h"
#include "chips/tensor.h"
#include "chips/torch.h"
#include "model/config.h"
#include "model/generation/kv_cache.h"
#include "model/layers/block.h"
#include "model/layers/rope.h"
#include "model/parameters.h"

namespace pelago::model {

/// Fresh weights: normal(0, initializer_range), residual outputs scaled by 1/sqrt(2L) (GPT-2),
/// norms 1, biases 0. f32 [N] on the CPU; depends on the seed and the parameter's name only, so
/// every site makes the same bits.
Tensor initial_weights(const ModelConfig& config, const Rng& rng);

/// Not for several threads at once: the table of positions grows on use.
class Transformer {
 public:
  /// parameters outlives the transformer.
  Transformer(const ModelConfig& config, const Parameters& parameters);
  const ModelConfig& config() const { return config_; }
  const Parameters& parameters() const { return *parameters_; }

  /// tokens, targets: [B,T] int64 on the device; a target of -100 counts for nothing. Returns the
  /// f32 sum of token losses; backward() on it leaves gradients with the parameters, from where
  /// move_gradients_into() takes them. Call it under NoGradGuard for evaluation.
  Tensor loss_sum(const Tensor& tokens, const Tensor& targets) const;
  /// tokens: [B,T_new] int64, appended to the cache. Returns logits of the last position, f32
  /// [B,V].
  Tensor next_logits(const Tensor& tokens, KvCache& cache) const;

 private:
  Tensor hidden_states(const Tensor& tokens, KvCache* cache) const;  // [B*T,D], after the last norm

  ModelConfig config_;
  const Parameters* parameters_;  // outlives me
  mutable RopeTable rope_;        // a cache: what it returns does not depend on calls before
};

/// A Hugging Face folder: config.json, model.safetensors (or shards with
/// model.safetensors.index.json), tokenizer.json.
struct LoadedModel {
  ModelConfig config;
  Tensor flat;  // f32 [N] on the CPU
};
/// Throws Failure naming the file and the tensor that is missing, superfluous or misshapen.
LoadedModel load_model_folder(const std::filesystem::path& folder);
/// Writes config.json, generation_config.json, model.safetensors (dtype: f32, f16 or bf16) into a
/// folder that is there (one that was taken away is not made anew) and copies tokenizer.json and
/// tokenizer_config.json from tokenizer_dir (none if that is empty). flat: [N] f32 CPU. A tied head
/// is not written twice. Throws Failure naming the file.
void save_model_folder(const std::filesystem::path& folder,
                       const ModelConfig& config,
                       const Tensor& flat,
                       c10::ScalarType dtype,
                       const std::filesystem::path& tokenizer_dir);

}  // namespace pelago::model
