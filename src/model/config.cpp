// What a shape must satisfy, what it costs, and the presets. The small presets are ours: every
// dimension that a matmul sees is a multiple of 64, and they are wider and shallower than usual,
// because on a CPU the passes between matmuls cost time in proportion to hidden_size x layers.
// "1b" has the shape of TinyLlama 1.1B, "8b" that of Llama 3 8B.
#include "model/config.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <string>
#include <utility>

#include "base/config.h"
#include "base/error.h"

namespace pelago::model {

namespace {

void check_positive(const char* field, int64_t value) {
  // 2^31 bounds products of two of these well inside int64.
  if (value < 1 || value > (int64_t{1} << 31)) {
    fail_usage("model.{} is {}: it must be between 1 and 2^31", field, value);
  }
}

void check_real(const char* field, double value, double at_most) {
  if (!(value > 0 && value <= at_most)) {
    fail_usage("model.{} is {}: it must be above 0 and at most {}", field, value, at_most);
  }
}

void check_family(const ModelConfig& config) {
  const bool is_qwen2 = config.model_type == "qwen2";
  const bool is_qwen3 = config.model_type == "qwen3";
  if (!is_qwen2 && !is_qwen3 && config.model_type != "llama") {
    fail_usage("model.model_type is \"{}\": it must be llama, qwen2 or qwen3", config.model_type);
  }
  if (config.attention_bias != is_qwen2) {
    fail_usage("model.attention_bias is {}: {} models have it {}; only qwen2 has biases",
               config.attention_bias,
               config.model_type,
               is_qwen2);
  }
  if (config.qk_norm != is_qwen3) {
    fail_usage("model.qk_norm is {}: {} models have it {}; only qwen3 normalises q and k",
               config.qk_norm,
               config.model_type,
               is_qwen3);
  }
}

/// Appends one layer's parameters. prefix: "model.layers.3.".
void append_layer_specs(const ModelConfig& config,
                        const std::string& prefix,
                        std::vector<ParameterSpec>& specs) {
  const int64_t hidden = config.hidden_size;
  const int64_t query = config.num_attention_heads * config.head_dim;
  const int64_t key = config.num_key_value_heads * config.head_dim;
  const auto matrix = [&](const char* name, int64_t rows, int64_t columns) {
    specs.push_back({prefix + name, {rows, columns}, true});
  };
  const auto vector = [&](const char* name, int64_t num_values) {
    specs.push_back({prefix + name, {num_values}, false});
  };
  matrix("self_attn.q_proj.weight", query, hidden);
  matrix("self_attn.k_proj.weight", key, hidden);
  matrix("self_attn.v_proj.weight", key, hidden);
  if (config.attention_bias) {
    vector("self_attn.q_proj.bias", query);
    vector("self_attn.k_proj.bias", key);
    vector("self_attn.v_proj.bias", key);
  }
  matrix("self_attn.o_proj.weight", hidden, query);
  if (config.qk_norm) {
    vector("self_attn.q_norm.weight", config.head_dim);
    vector("self_attn.k_norm.weight", config.head_dim);
  }
  matrix("mlp.gate_proj.weight", config.intermediate_size, hidden);
  matrix("mlp.up_proj.weight", config.intermediate_size, hidden);
  matrix("mlp.down_proj.weight", hidden, config.intermediate_size);
  vector("input_layernorm.weight", hidden);
  vector("post_attention_layernorm.weight", hidden);
}

struct Preset {
  const char* name;
  const char* model_type;
  int64_t vocab_size, hidden_size, intermediate_size, num_hidden_layers;
  int64_t num_attention_heads, num_key_value_heads, head_dim, max_position_embeddings;
  double rms_norm_eps, rope_theta;
  bool tie_word_embeddings;
};

constexpr std::array<Preset, 8> kPresets = {{
    {"1m", "qwen3", 8192, 64, 192, 8, 2, 1, 32, 2048, 1e-6, 1e4, true},
    {"2m", "qwen3", 8192, 128, 384, 5, 2, 1, 64, 2048, 1e-6, 1e4, true},
    {"10m", "qwen3", 8192, 384, 1152, 4, 6, 2, 64, 2048, 1e-6, 1e4, true},
    {"35m", "qwen3", 8192, 512, 1536, 10, 8, 4, 64, 2048, 1e-6, 1e4, true},
    {"100m", "qwen3", 8192, 768, 2304, 14, 12, 4, 64, 2048, 1e-6, 1e4, true},
    {"350m", "qwen3", 49152, 1024, 3072, 24, 16, 8, 64, 4096, 1e-6, 1e5, true},
    {"1b", "llama", 32000, 2048, 5632, 22, 32, 4, 64, 2048, 1e-5, 1e4, false},
    {"8b", "llama", 128256, 4096, 14336, 32, 32, 8, 128, 8192, 1e-5, 5e5, false},
}};

}  // namespace

void ModelConfig::validate() const {
  check_family(*this);
  check_positive("vocab_size", vocab_size);
  check_positive("hidden_size", hidden_size);
  check_positive("intermediate_size", intermediate_size);
  check_positive("num_hidden_layers", num_hidden_layers);
  check_positive("num_attention_heads", num_attention_heads);
  check_positive("num_key_value_heads", num_key_value_heads);
  check_positive("head_dim", head_dim);
  check_positive("max_position_embeddings", max_position_embeddings);
  if (num_attention_heads % num_key_value_heads != 0) {
    fail_usage("model.num_attention_heads is {}: it must be a multiple of num_key_value_heads = {}",
               num_attention_heads,
               num_key_value_heads);
  }
  if (head_dim % 2 != 0) {
    fail_usage("model.head_dim is {}: it must be even, RoPE rotates pairs", head_dim);
  }
  check_real("rms_norm_eps", rms_norm_eps, 1.0);
  check_real("rope_theta", rope_theta, 1e12);
  check_real("initializer_range", initializer_range, 10.0);
  if (rope_scaling) {
    check_real("rope_scaling.factor", rope_scaling->factor, 1e6);
    check_real("rope_scaling.low_freq_factor", rope_scaling->low_freq_factor, 1e6);
    check_real("rope_scaling.high_freq_factor", rope_scaling->high_freq_factor, 1e6);
    check_positive("rope_scaling.original_max_position_embeddings",
                   rope_scaling->original_max_position_embeddings);
    if (rope_scaling->high_freq_factor <= rope_scaling->low_freq_factor) {
      fail_usage("model.rope_scaling.high_freq_factor is {}: it must exceed low_freq_factor = {}",
                 rope_scaling->high_freq_factor,
                 rope_scaling->low_freq_factor);
    }
  }
  for (const auto& [field, token] :
       {std::pair{"bos_token_id", bos_token_id}, std::pair{"eos_token_id", eos_token_id}}) {
    if (token < -1 || token >= vocab_size) {
      fail_usage("model.{} is {}: it must be below vocab_size = {}, or -1 for none",
                 field,
                 token,
                 vocab_size);
    }
  }
}

int64_t ParameterSpec::num_values() const {
  int64_t product = 1;
  for (const int64_t extent : shape) product *= extent;
  return product;
}

std::vector<ParameterSpec> parameter_specs(const ModelConfig& config) {
  std::vector<ParameterSpec> specs;
  specs.push_back({"model.embed_tokens.weight", {config.vocab_size, config.hidden_size}, true});
  for (int64_t layer_idx = 0; layer_idx < config.num_hidden_layers; ++layer_idx) {
    append_layer_specs(config, fmt::format("model.layers.{}.", layer_idx), specs);
  }
  specs.push_back({"model.norm.weight", {config.hidden_size}, false});
  if (!config.tie_word_embeddings) {
    specs.push_back({"lm_head.weight", {config.vocab_size, config.hidden_size}, true});
  }
  return specs;
}

int64_t ModelConfig::num_parameters() const {
  int64_t sum = 0;
  for (const ParameterSpec& spec : parameter_specs(*this)) sum += spec.num_values();
  return sum;
}

double ModelConfig::forward_flops_per_token(int64_t context_tokens) const {
  const double hidden = static_cast<double>(hidden_size);
  const double query = static_cast<double>(num_attention_heads * head_dim);
  const double key = static_cast<double>(num_key_value_heads * head_dim);
  const double feed_forward = static_cast<double>(intermediate_size);
  const double matrices = hidden * (2 * query + 2 * key + 3 * feed_forward);
  // A token at position t sees t + 1 keys: (context + 1) / 2 on average. q k^T and the weighted
  // sum of v are one multiply-add each per key and query element.
  const double keys_seen = (static_cast<double>(context_tokens) + 1) / 2;
  const double layers = static_cast<double>(num_hidden_layers);
  const double head = hidden * static_cast<double>(vocab_size);
  return 2 * (layers * (matrices + 2 * query * keys_seen) + head);
}

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.emplace_back(preset.name);
  return names;
}

ModelConfig preset(std::string_view name) {
  for (const Preset& known : kPresets) {
    if (name != known.name) continue;
    ModelConfig config;
    config.model_type = known.model_type;
    config.vocab_size = known.vocab_size;
    config.hidden_size = known.hidden_size;
    config.intermediate_size = known.intermediate_size;
    config.num_hidden_layers = known.num_hidden_layers;
    config.num_attention_heads = known.num_attention_heads;
    config.num_key_value_heads = known.num_key_value_heads;
    config.head_dim = known.head_dim;
    config.max_position_embeddings = known.max_position_embeddings;
    config.rms_norm_eps = known.rms_norm_eps;
    config.rope_theta = known.rope_theta;
    config.tie_word_embeddings = known.tie_word_embeddings;
    config.qk_norm = config.model_type == "qwen3";
    return config;
  }
  const std::vector<std::string> names = preset_names();
  const std::optional<std::string> nearest = nearest_word(name, names);
  fail_usage("there is no model preset \"{}\"{}: choose one of {}",
             name,
             nearest ? fmt::format(" (did you mean \"{}\"?)", *nearest) : "",
             fmt::join(names, ", "));
}

}  // namespace pelago::model
