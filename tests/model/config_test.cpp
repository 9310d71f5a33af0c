#include "model/config.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "model/model_support.h"

namespace pelago::model {
namespace {

using Json = nlohmann::json;

/// Llama 3.1 8B as published, without fields that only describe the file.
Json llama_31_8b() {
  return Json::parse(R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false,
    "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
    "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true,
    "vocab_size": 128256})");
}

ModelConfig read(const Json& json) {
  const ScratchFolder folder;
  write_file(folder.path() / "config.json", json.dump());
  return read_model_config(folder.path() / "config.json");
}

std::string refusal(const std::string& key, const Json& value) {
  Json json = llama_31_8b();
  json[key] = value;
  return failure_of([&] { read(json); });
}

TEST_CASE("published shapes have their published number of parameters") {
  CHECK(preset("8b").num_parameters() == 8'030'261'248);  // meta-llama/Meta-Llama-3-8B
  CHECK(preset("1b").num_parameters() == 1'100'048'384);  // TinyLlama/TinyLlama-1.1B
  CHECK(read(llama_31_8b()).num_parameters() == 8'030'261'248);
}

TEST_CASE("every preset is valid, near its name and survives config.json") {
  const std::map<std::string, double> millions = {{"1m", 1},
                                                  {"2m", 2},
                                                  {"10m", 10},
                                                  {"35m", 35},
                                                  {"100m", 100},
                                                  {"350m", 350},
                                                  {"1b", 1100},
                                                  {"8b", 8030}};
  for (const std::string& name : preset_names()) {
    CAPTURE(name);
    const ModelConfig config = preset(name);
    config.validate();
    CHECK(static_cast<double>(config.num_parameters()) / 1e6 ==
          doctest::Approx(millions.at(name)).epsilon(0.1));
    CHECK(config.hidden_size % 64 == 0);
    CHECK(config.intermediate_size % 64 == 0);
    CHECK(read(Json::parse(to_config_json(config, "bfloat16"))) == config);
  }
}

TEST_CASE("an unknown preset is refused with the nearest") {
  CHECK(failure_of([] { preset("10M"); }) ==
        "there is no model preset \"10M\" (did you mean \"10m\"?): choose one of 1m, 2m, 10m, 35m, "
        "100m, 350m, 1b, 8b");
}

TEST_CASE("a published Llama 3.1 is read with its rope scaling and first end of text") {
  const ModelConfig config = read(llama_31_8b());
  CHECK(config.rope_scaling == RopeScaling{8, 1, 4, 8192});
  CHECK(config.eos_token_id == 128001);
  CHECK(config.head_dim == 128);
  CHECK_FALSE(config.qk_norm);
}

TEST_CASE("a published Qwen2.5 and Qwen3 are read with their defaults") {
  const ModelConfig qwen2 = read(Json::parse(R"({"architectures": ["Qwen2ForCausalLM"],
    "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896,
    "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21,
    "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": true, "use_sliding_window": false,
    "vocab_size": 151936})"));
  CHECK(qwen2.attention_bias);
  CHECK(qwen2.head_dim == 64);
  CHECK(qwen2.num_parameters() == 494'032'768);  // Qwen/Qwen2.5-0.5B
  const ModelConfig qwen3 = read(Json::parse(R"({"architectures": ["Qwen3ForCausalLM"],
    "attention_bias": false, "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
    "max_position_embeddings": 40960, "model_type": "qwen3", "num_attention_heads": 16,
    "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": null, "rope_theta": 1000000, "tie_word_embeddings": true,
    "vocab_size": 151936})"));
  CHECK(qwen3.qk_norm);
  CHECK(qwen3.num_parameters() == 596'049'920);  // Qwen/Qwen3-0.6B
}

TEST_CASE("rope_parameters of newer files is read as rope_theta and rope_scaling") {
  Json json = llama_31_8b();
  json["rope_parameters"] = json["rope_scaling"];
  json["rope_parameters"]["rope_theta"] = 250000.0;
  json.erase("rope_scaling");
  json.erase("rope_theta");
  CHECK(read(json).rope_theta == 250000.0);
  CHECK(read(json).rope_scaling == RopeScaling{8, 1, 4, 8192});
}

TEST_CASE("what would change the arithmetic is refused by name") {
  CHECK(contains(refusal("architectures", {"MixtralForCausalLM"}), "architectures is [\"Mixtral"));
  CHECK(contains(refusal("model_type", "gpt2"), "LlamaForCausalLM"));
  CHECK(contains(refusal("hidden_act", "gelu"), "hidden_act is \"gelu\": only silu"));
  CHECK(contains(refusal("rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}),
                 "only the rope_types default and llama3"));
  CHECK(contains(refusal("attention_bias", true), "attention_bias is true"));
  CHECK(contains(refusal("num_local_experts", 8), "mixtures of experts"));
  CHECK(contains(refusal("quantization_config", {{"bits", 4}}), "quantised"));
  CHECK(refusal("rope_scaling", {{"rope_type", "default"}}).empty());
}

TEST_CASE("a field that is missing or of the wrong kind is named with its file") {
  CHECK(contains(refusal("hidden_size", nullptr), "config.json: hidden_size is missing"));
  CHECK(contains(refusal("hidden_size", 4096.5), "hidden_size is 4096.5: it must be a whole"));
  CHECK(contains(refusal("vocab_size", -1), "vocab_size is -1"));
  CHECK(contains(refusal("num_key_value_heads", 7), "multiple of num_key_value_heads = 7"));
  CHECK(contains(refusal("tie_word_embeddings", 1), "it must be true or false"));
}

TEST_CASE("a config.json that is not an object is refused") {
  const ScratchFolder folder;
  for (const char* text : {"", "{", "[]", "\x80"}) {
    write_file(folder.path() / "config.json", text);
    CHECK(contains(failure_of([&] { read_model_config(folder.path() / "config.json"); }),
                   "config.json: this is not a JSON object"));
  }
}

TEST_CASE("validate names field, value and what is allowed") {
  ModelConfig config;
  config.head_dim = 63;
  CHECK(failure_of([&] { config.validate(); }) ==
        "model.head_dim is 63: it must be even, RoPE rotates pairs");
  config = ModelConfig();
  config.model_type = "llama";
  CHECK(contains(failure_of([&] { config.validate(); }), "model.qk_norm is true"));
}

TEST_CASE("a layer's parameters stand in order, query key value side by side") {
  const std::vector<ParameterSpec> specs = parameter_specs(tiny_config("qwen2", false));
  CHECK(specs.front().name == "model.embed_tokens.weight");
  CHECK(specs[1].name == "model.layers.0.self_attn.q_proj.weight");
  CHECK(specs[2].name == "model.layers.0.self_attn.k_proj.weight");
  CHECK(specs[3].name == "model.layers.0.self_attn.v_proj.weight");
  CHECK(specs[4].name == "model.layers.0.self_attn.q_proj.bias");
  CHECK_FALSE(specs[4].decays);
  CHECK(specs.back().name == "lm_head.weight");
  CHECK(specs.back().shape == std::vector<int64_t>{37, 24});
}

TEST_CASE("the work of a token is that of its matrices, its head and the keys it sees") {
  ModelConfig config = tiny_config("llama", true);
  config.num_hidden_layers = 1;
  // q and o 24x32, k and v 24x16, feed-forward 3 x 24x40, head 24x37; at context 1 one key of
  // 4 heads x 8, twice.
  const double multiply_adds = 2 * 24 * 32 + 2 * 24 * 16 + 3 * 24 * 40 + 24 * 37 + 2 * 32;
  CHECK(config.forward_flops_per_token(1) == 2 * multiply_adds);
}

}  // namespace
}  // namespace pelago::model
