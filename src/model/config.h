// The shape of a decoder-only transformer, in the words of Hugging Face's config.json. No torch
// here.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pelago::model {

/// Llama 3.1's stretch of RoPE to longer contexts: wavelengths above original / low_freq_factor
/// grow by `factor`, those below original / high_freq_factor stay, those between are blended.
struct RopeScaling {
  double factor = 8.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_position_embeddings = 8192;
  bool operator==(const RopeScaling&) const = default;
};

/// Field names are those of config.json for LlamaForCausalLM and Qwen3ForCausalLM /
/// Qwen2ForCausalLM.
struct ModelConfig {
  std::string model_type =
      "qwen3";  // "llama", "qwen2" or "qwen3"; decides which optional parts are usual
  int64_t vocab_size = 8192;
  int64_t hidden_size = 256;
  int64_t intermediate_size = 768;
  int64_t num_hidden_layers = 8;
  int64_t num_attention_heads = 4;
  int64_t num_key_value_heads = 2;
  int64_t head_dim = 64;
  int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  std::optional<RopeScaling> rope_scaling;  // rope_type "llama3"; absent: none
  bool tie_word_embeddings = true;
  bool attention_bias = false;  // biases on q, k, v (Qwen 2)
  bool qk_norm =
      true;  // RMSNorm on each head of q and k (Qwen 3); implied by model_type in config.json
  double initializer_range = 0.02;
  int64_t bos_token_id = -1;  // -1: none
  int64_t eos_token_id = -1;

  /// Throws Failure (exit 2) naming field, value and what is allowed.
  void validate() const;
  /// Parameters, embeddings counted once if tied.
  int64_t num_parameters() const;
  /// Multiply-adds x 2 of one forward pass of one token: matmuls, head included, and causal
  /// attention, averaged over the positions of a context of this many tokens.
  double forward_flops_per_token(int64_t context_tokens) const;
  bool operator==(const ModelConfig&) const = default;
};

/// A parameter's name (Hugging Face's: "model.layers.0.self_attn.q_proj.weight"), shape, and
/// whether weight decay applies (matrices yes; norms and biases no). The order is that of the flat
/// parameter vector everywhere in pelago: q, k, v of a layer lie side by side, then their biases;
/// gate and up lie side by side. One matmul then serves several of them without a copy.
struct ParameterSpec {
  std::string name;
  std::vector<int64_t> shape;
  bool decays = true;
  int64_t num_values() const;
};
std::vector<ParameterSpec> parameter_specs(const ModelConfig& config);

/// "1m", "2m", "10m", "35m", "100m", "350m", "1b", "8b": names in preset_names(). Throws Failure
/// (exit 2) with the nearest.
ModelConfig preset(std::string_view name);
std::vector<std::string> preset_names();

/// config.json, both ways. Throws Failure naming file, field and value (an architecture outside the
/// family, a rope_scaling we do not have, a missing field).
ModelConfig read_model_config(const std::filesystem::path& config_json);
std::string to_config_json(const ModelConfig& config, std::string_view torch_dtype);

}  // namespace pelago::model
