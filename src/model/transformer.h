// The decoder-only transformer of Llama 3 and Qwen 3, on whatever device its parameters lie.
// All parameters are views of ONE flat vector in the order of parameter_specs(): the optimizer, the
// reduction over ranks and the fragments between sites then work on ranges of a vector, not on
// lists.
#pragma once

#include <torch/torch.h>

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/rng.h"
#include "chips/tensor.h"
#include "model/config.h"

namespace pelago::model {

/// The flat vector of parameters and its named views.
class Parameters {
 public:
  /// flat: [N] on any device and float dtype, contiguous, N = config.num_parameters(). Views share
  /// its memory.
  Parameters(const ModelConfig& config, Tensor flat);
  const Tensor& flat() const { return flat_; }  // [N]
  const std::vector<Tensor>& views() const {
    return views_;
  }  // parameter_specs() order, leaves that require grad
  const std::vector<ParameterSpec>& specs() const { return specs_; }
  const Tensor& at(std::string_view name) const;
  /// Adds every view's gradient into flat f32 [N] and clears it.
  void move_gradients_into(Tensor& flat_gradient);

 private:
  Tensor flat_;
  std::vector<ParameterSpec> specs_;
  std::vector<Tensor> views_;
};

/// Fresh weights: normal(0, initializer_range), residual outputs scaled by 1/sqrt(2L) (GPT-2),
/// norms 1, biases 0. f32 [N] on the CPU; depends on the seed and the parameter's name only, so
/// every site makes the same bits.
Tensor initial_weights(const ModelConfig& config, const Rng& rng);

/// Keys and values of what was already read, for generation. Grows by doubling.
class KvCache {
 public:
  KvCache(const ModelConfig& config, int64_t batch, c10::Device device, c10::ScalarType dtype);
  int64_t num_tokens() const { return num_tokens_; }

 private:
  friend class Transformer;
  std::vector<Tensor> keys_, values_;  // a layer: [B,T_max,K,E]
  int64_t num_tokens_ = 0;
};

class Transformer {
 public:
  /// parameters outlives the transformer.
  Transformer(const ModelConfig& config, const Parameters& parameters);

  /// tokens, targets: [B,T] int64 on the device; a target of -100 counts for nothing. Returns the
  /// f32 sum of token losses; backward() on it leaves gradients on the parameters' views.
  /// recompute: keep only block inputs for backward.
  Tensor loss_sum(const Tensor& tokens, const Tensor& targets) const;
  /// tokens: [B,T_new] int64, appended to the cache. Returns logits of the last position, f32
  /// [B,V].
  Tensor next_logits(const Tensor& tokens, KvCache& cache) const;

 private:
  struct Block;
  Tensor hidden_states(const Tensor& tokens, KvCache* cache) const;  // [B,T,D], after the last norm
  ModelConfig config_;
  const Parameters* parameters_;
  std::vector<Block> blocks_;
};

/// A Hugging Face folder: config.json, model.safetensors (or shards with
/// model.safetensors.index.json), tokenizer.json.
struct LoadedModel {
  ModelConfig config;
  Tensor flat;  // f32 [N] on the CPU
};
/// Throws Failure naming the file and the tensor that is missing, superfluous or misshapen.
LoadedModel load_model_folder(const std::filesystem::path& folder);
/// Writes config.json, generation_config.json, model.safetensors (dtype: f32 or bf16) and copies
/// tokenizer.json and tokenizer_config.json from tokenizer_dir. flat: [N] f32 CPU. A tied head is
/// not written twice.
void save_model_folder(const std::filesystem::path& folder,
                       const ModelConfig& config,
                       const Tensor& flat,
                       c10::ScalarType dtype,
                       const std::filesystem::path& tokenizer_dir);

}  // namespace pelago::model
