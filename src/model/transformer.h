// The decoder-only transformer of Llama 3 and Qwen 3, on whatever device its parameters lie.
// Training: loss_sum(tokens, targets).backward(), as often as there are microbatches, each followed
// by parameters.move_gradients_into(flat_gradient). Generation: next_logits with a KvCache.
#pragma once

#include "chips/torch.h"

#include <filesystem>
#include <vector>

#include "base/rng.h"
#include "chips/tensor.h"
#include "model/config.h"
#include "model/parameters.h"

namespace pelago::model {

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
  struct KeysValues {
    Tensor keys, values;  // [B,T_all,K,E]
  };
  /// Appends a layer's keys and values [B,T_new,K,E]; returns all there are.
  KeysValues append(int64_t layer_idx, const Tensor& keys, const Tensor& values);

  std::vector<Tensor> keys_, values_;  // a layer: [B,T_max,K,E]
  int64_t num_tokens_ = 0;
};

/// The rotation of every position, made when it is first needed. f32, on one device.
class RopeTable {
 public:
  RopeTable(const ModelConfig& config, c10::Device device);
  struct Rows {
    Tensor cos, sin;  // [T,E/2] f32
  };
  /// Rows of positions [begin, begin + num_positions).
  Rows rows(int64_t begin, int64_t num_positions);

 private:
  std::vector<double> frequencies_;  // [E/2], radians a position
  c10::Device device_;
  Tensor cos_, sin_;  // [T_max,E/2] f32
};

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
  Tensor attend(const BlockWeights& weights,
                const Tensor& normed,
                const RopeTable::Rows& rope,
                int64_t layer_idx,
                KvCache* cache) const;  // [B*T,D]

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
/// Writes config.json, generation_config.json, model.safetensors (dtype: f32, f16 or bf16) and
/// copies tokenizer.json and tokenizer_config.json from tokenizer_dir (none if that is empty).
/// flat: [N] f32 CPU. A tied head is not written twice. Throws Failure naming the file.
void save_model_folder(const std::filesystem::path& folder,
                       const ModelConfig& config,
                       const Tensor& flat,
                       c10::ScalarType dtype,
                       const std::filesystem::path& tokenizer_dir);

}  // namespace pelago::model
