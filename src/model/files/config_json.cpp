// config.json of the dense Llama and Qwen families, both ways. Defaults are those of the
// transformers library (configuration_llama.py, configuration_qwen2.py, configuration_qwen3.py):
// published files leave out what equals them. What would change the arithmetic and is not built
// here is refused by name; what only describes the file (torch_dtype, transformers_version,
// use_cache, pretraining_tp) is skipped. transformers 5 renamed rope_theta + rope_scaling to
// rope_parameters; both are read.
#include <cmath>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/files.h"
#include "base/text/json.h"
#include "model/config.h"
#include "model/quantisation.h"

namespace pelago::model {

namespace {

using Json = nlohmann::json;

struct Family {
  const char* model_type;
  const char* architecture;
  int64_t max_position_embeddings;  // transformers' default
};
constexpr Family kFamilies[] = {{"llama", "LlamaForCausalLM", 2048},
                                {"qwen2", "Qwen2ForCausalLM", 32768},
                                {"qwen3", "Qwen3ForCausalLM", 32768}};

/// One JSON object of a file, read field by field; messages name the file and the field.
class Fields {
 public:
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }
  std::string text(const char* key) const { return object_.at(key).dump(); }
  [[noreturn]] void refuse(const char* key, const std::string& why) const {
    fail("{}: {} is {}: {}", where_, key, text(key), why);
  }

  int64_t integer(const char* key) const {
    if (!has(key)) fail("{}: {} is missing", where_, key);
    if (!object_.at(key).is_number_integer()) refuse(key, "it must be a whole number");
    return object_.at(key).get<int64_t>();
  }
  int64_t integer_or(const char* key, int64_t fallback) const {
    return has(key) ? integer(key) : fallback;
  }
  double real(const char* key) const {
    if (!has(key)) fail("{}: {} is missing", where_, key);
    if (!object_.at(key).is_number()) refuse(key, "it must be a number");
    return object_.at(key).get<double>();
  }
  double real_or(const char* key, double fallback) const { return has(key) ? real(key) : fallback; }
  bool flag_or(const char* key, bool fallback) const {
    if (!has(key)) return fallback;
    if (!object_.at(key).is_boolean()) refuse(key, "it must be true or false");
    return object_.at(key).get<bool>();
  }
  std::string word_or(const char* key, const std::string& fallback) const {
    if (!has(key)) return fallback;
    if (!object_.at(key).is_string()) refuse(key, "it must be a string");
    return object_.at(key).get<std::string>();
  }
  Fields table(const char* key) const {
    if (!object_.at(key).is_object()) refuse(key, "it must be an object");
    return {object_.at(key), where_ + ": " + key};
  }
  /// A token id; a list of them (several ends of text) gives its first.
  int64_t token_or_none(const char* key) const {
    if (!has(key)) return -1;
    const Json& value = object_.at(key);
    if (value.is_array() && !value.empty() && value[0].is_number_integer()) return value[0];
    return integer(key);
  }
  /// Throws Failure unless the field is absent or equals what this program computes with.
  void require(const char* key, const Json& wanted, const char* why) const {
    if (has(key) && object_.at(key) != wanted) refuse(key, why);
  }

 private:
  const Json& object_;
  std::string where_;
};

const Family& find_family(const Fields& fields, const Json& json) {
  std::string architecture;
  if (fields.has("architectures")) {
    const Json& names = json.at("architectures");
    if (!names.is_array() || names.size() != 1 || !names[0].is_string()) {
      fields.refuse("architectures", "it must be a list of one name");
    }
    architecture = names[0].get<std::string>();
  }
  const std::string model_type = fields.word_or("model_type", "");
  for (const Family& family : kFamilies) {
    if (!architecture.empty() && architecture != family.architecture) continue;
    if (!model_type.empty() && model_type != family.model_type) continue;
    if (architecture.empty() && model_type.empty()) continue;
    return family;
  }
  const char* key = architecture.empty() ? "model_type" : "architectures";
  if (architecture.empty() && model_type.empty()) fields.integer("model_type");  // throws: missing
  fields.refuse(key,
                "this is not a dense model of the Llama or Qwen family; LlamaForCausalLM, "
                "Qwen2ForCausalLM and Qwen3ForCausalLM can be read");
}

void refuse_other_arithmetic(const Fields& fields, const Json& json) {
  fields.require("hidden_act", "silu", "only silu is built");
  fields.require("mlp_bias", false, "biases in the feed-forward are not built");
  fields.require("use_sliding_window", false, "sliding windows are not built");
  fields.require("attention_bias", false, "biases on o_proj are not built");
  fields.require("partial_rotary_factor", 1.0, "partial RoPE is not built");
  for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts"}) {
    fields.require(key, 0, "mixtures of experts are not built");
  }
  if (!fields.has("layer_types")) return;
  for (const Json& layer_type : json.at("layer_types")) {
    if (layer_type != "full_attention")
      fields.refuse("layer_types", "only full_attention is built");
  }
}

std::optional<RopeScaling> read_rope_scaling(const Fields& fields, const char* key) {
  if (!fields.has(key)) return std::nullopt;
  const Fields scaling = fields.table(key);
  const std::string type = scaling.word_or("rope_type", scaling.word_or("type", "default"));
  if (type == "default") return std::nullopt;
  if (type != "llama3") fields.refuse(key, "only the rope_types default and llama3 are built");
  return RopeScaling{scaling.real("factor"),
                     scaling.real("low_freq_factor"),
                     scaling.real("high_freq_factor"),
                     scaling.integer("original_max_position_embeddings")};
}

}  // namespace

ModelConfig read_model_config(const std::filesystem::path& config_json) {
  const std::string where = config_json.string();
  const Json json = Json::parse(read_text_file(config_json), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) fail("{}: this is not a JSON object", where);
  const Fields fields(json, where);
  const Family& family = find_family(fields, json);
  refuse_other_arithmetic(fields, json);
  read_quantisation(config_json);  // refuses the formats that cannot be read

  ModelConfig config;
  config.model_type = family.model_type;
  config.attention_bias = config.model_type == "qwen2";
  config.qk_norm = config.model_type == "qwen3";
  config.vocab_size = fields.integer("vocab_size");
  config.hidden_size = fields.integer("hidden_size");
  config.intermediate_size = fields.integer("intermediate_size");
  config.num_hidden_layers = fields.integer("num_hidden_layers");
  config.num_attention_heads = fields.integer("num_attention_heads");
  const bool is_llama = config.model_type == "llama";
  config.num_key_value_heads =
      fields.integer_or("num_key_value_heads", is_llama ? config.num_attention_heads : 32);
  const int64_t heads = std::max<int64_t>(1, config.num_attention_heads);
  config.head_dim =
      fields.integer_or("head_dim", config.qk_norm ? 128 : config.hidden_size / heads);
  config.max_position_embeddings =
      fields.integer_or("max_position_embeddings", family.max_position_embeddings);
  config.rms_norm_eps = fields.real_or("rms_norm_eps", 1e-6);
  config.rope_theta = fields.real_or("rope_theta", 10000.0);
  config.rope_scaling = read_rope_scaling(fields, "rope_scaling");
  if (fields.has("rope_parameters")) {
    config.rope_theta = fields.table("rope_parameters").real_or("rope_theta", config.rope_theta);
    config.rope_scaling = read_rope_scaling(fields, "rope_parameters");
  }
  config.tie_word_embeddings = fields.flag_or("tie_word_embeddings", false);
  config.initializer_range = fields.real_or("initializer_range", 0.02);
  config.bos_token_id = fields.token_or_none("bos_token_id");
  config.eos_token_id = fields.token_or_none("eos_token_id");
  try {
    config.validate();
  } catch (const Failure& failure) {
    throw Failure(where + ": " + failure.what());
  }
  return config;
}

std::string to_config_json(const ModelConfig& config, std::string_view torch_dtype) {
  const bool is_llama = config.model_type == "llama";
  const bool is_qwen2 = config.model_type == "qwen2";
  const auto token_or_null = [](int64_t token) { return token < 0 ? Json() : Json(token); };
  Json json;  // keys sorted, as published files have them
  for (const Family& family : kFamilies) {
    if (config.model_type == family.model_type) json["architectures"] = {family.architecture};
  }
  json["attention_dropout"] = 0.0;
  json["bos_token_id"] = token_or_null(config.bos_token_id);
  json["eos_token_id"] = token_or_null(config.eos_token_id);
  json["hidden_act"] = "silu";
  json["hidden_size"] = config.hidden_size;
  json["initializer_range"] = config.initializer_range;
  json["intermediate_size"] = config.intermediate_size;
  json["max_position_embeddings"] = config.max_position_embeddings;
  json["model_type"] = config.model_type;
  json["num_attention_heads"] = config.num_attention_heads;
  json["num_hidden_layers"] = config.num_hidden_layers;
  json["num_key_value_heads"] = config.num_key_value_heads;
  json["rms_norm_eps"] = config.rms_norm_eps;
  json["rope_scaling"] = nullptr;
  if (config.rope_scaling) {
    json["rope_scaling"] = {
        {"factor", config.rope_scaling->factor},
        {"high_freq_factor", config.rope_scaling->high_freq_factor},
        {"low_freq_factor", config.rope_scaling->low_freq_factor},
        {"original_max_position_embeddings", config.rope_scaling->original_max_position_embeddings},
        {"rope_type", "llama3"}};
  }
  json["rope_theta"] = config.rope_theta;
  json["tie_word_embeddings"] = config.tie_word_embeddings;
  json["torch_dtype"] = torch_dtype;
  json["transformers_version"] = "4.51.0";  // the first that knows Qwen3
  json["use_cache"] = true;
  json["vocab_size"] = config.vocab_size;
  // Qwen2Config has no attention_bias (q, k, v always have biases) and derives head_dim.
  const bool derives_head_dim = config.head_dim * config.num_attention_heads == config.hidden_size;
  if (!is_qwen2) json["attention_bias"] = false;
  if (!is_qwen2 || !derives_head_dim) json["head_dim"] = config.head_dim;
  if (is_llama) {
    json["mlp_bias"] = false;
    json["pretraining_tp"] = 1;
  } else {
    json["max_window_layers"] = config.num_hidden_layers;
    json["sliding_window"] = is_qwen2 ? Json(config.max_position_embeddings) : Json();
    json["use_sliding_window"] = false;
  }
  return json.dump(2) + "\n";
}

}  // namespace pelago::model
