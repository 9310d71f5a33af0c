// Tiny models and folders that tests of this room share.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <string>

#include "base/rng.h"
#include "chips/torch.h"
#include "model/transformer.h"

namespace pelago::model {

/// A model of a few thousand parameters whose every dimension differs from the others.
inline ModelConfig tiny_config(const std::string& model_type, bool tie_word_embeddings) {
  ModelConfig config;
  config.model_type = model_type;
  config.vocab_size = 37;
  config.hidden_size = 24;
  config.intermediate_size = 40;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 8;
  config.max_position_embeddings = 64;
  config.tie_word_embeddings = tie_word_embeddings;
  config.attention_bias = model_type == "qwen2";
  config.qk_norm = model_type == "qwen3";
  return config;
}

/// Weights large enough that every part of the model matters, norms and biases too. f32 [N].
inline Tensor lively_weights(const ModelConfig& config, uint64_t seed) {
  Rng rng = Rng(seed).fork("lively");
  const Tensor flat = at::empty({config.num_parameters()}, at::kFloat);
  float* values = flat.data_ptr<float>();
  for (const ParameterSpec& spec : parameter_specs(config)) {
    const bool is_norm = spec.name.ends_with("norm.weight");
    for (int64_t idx = 0; idx < spec.num_values(); ++idx) {
      *values++ = static_cast<float>((is_norm ? 1.0 : 0.0) + 0.2 * rng.next_normal());
    }
  }
  return flat;
}

/// int64 [batch,num_tokens], below vocab_size.
inline Tensor random_tokens(const ModelConfig& config, int64_t batch, int64_t num_tokens) {
  Rng rng = Rng(5).fork("tokens");
  const Tensor tokens = at::empty({batch, num_tokens}, at::kLong);
  for (int64_t idx = 0; idx < tokens.numel(); ++idx) {
    tokens.data_ptr<int64_t>()[idx] =
        static_cast<int64_t>(rng.next_below(static_cast<uint64_t>(config.vocab_size)));
  }
  return tokens;
}

/// An empty folder, removed when it goes.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "pelago-model-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// The message of the Failure that action throws; "" if it throws none.
template <typename Action>
std::string failure_of(const Action& action) {
  try {
    action();
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "";
}

}  // namespace pelago::model
