#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "model/model_support.h"
#include "model/safetensors.h"
#include "model/transformer.h"

namespace pelago::model {
namespace {

using Json = nlohmann::json;
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

/// A saved tiny model that a test then damages.
struct SavedModel {
  explicit SavedModel(bool tie_word_embeddings = true)
      : config(tiny_config("qwen3", tie_word_embeddings)), flat(lively_weights(config, 1)) {
    save_model_folder(folder.path(), config, flat, at::kFloat, {});
  }

  NamedTensors tensors() const {
    const SafetensorsFile file(weights_path());
    NamedTensors tensors;
    for (const std::string& name : file.names())
      tensors.emplace_back(name, file.tensor(name).clone());
    return tensors;
  }
  void rewrite(const NamedTensors& tensors) const {
    REQUIRE(try_write_safetensors(weights_path(), tensors));
  }
  std::filesystem::path weights_path() const { return folder.path() / "model.safetensors"; }
  std::string refusal() const {
    return failure_of([&] { load_model_folder(folder.path()); });
  }

  ScratchFolder folder;
  ModelConfig config;
  Tensor flat;
};

TEST_CASE("an exported folder has every field that the published format asks for") {
  const ScratchFolder folder, tokenizer;
  write_file(tokenizer.path() / "tokenizer.json", "{\"version\":\"1.0\"}");
  write_file(tokenizer.path() / "tokenizer_config.json", "{}");
  ModelConfig config = tiny_config("qwen3", true);
  config.eos_token_id = 0;
  const Tensor flat = lively_weights(config, 1);
  save_model_folder(folder.path(), config, flat, at::kBFloat16, tokenizer.path());

  const Json wanted = Json::parse(R"({
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": null, "eos_token_id": 0, "head_dim": 8, "hidden_act": "silu",
    "hidden_size": 24, "initializer_range": 0.02, "intermediate_size": 40,
    "max_position_embeddings": 64, "max_window_layers": 2, "model_type": "qwen3",
    "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 10000.0, "sliding_window": null,
    "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
    "use_cache": true, "use_sliding_window": false, "vocab_size": 37})");
  CHECK(Json::parse(read_text_file(folder.path() / "config.json")) == wanted);
  CHECK(Json::parse(read_text_file(folder.path() / "generation_config.json")) ==
        Json::parse(R"({"_from_model_config": true, "eos_token_id": 0,
                        "transformers_version": "4.51.0"})"));
  CHECK(read_text_file(folder.path() / "tokenizer.json") == "{\"version\":\"1.0\"}");
  CHECK(read_text_file(folder.path() / "tokenizer_config.json") == "{}");

  const SafetensorsFile file(folder.path() / "model.safetensors");
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}});
  CHECK_FALSE(file.has("lm_head.weight"));
  CHECK(file.names().size() == parameter_specs(config).size());
  const Tensor up = file.tensor("model.layers.1.mlp.up_proj.weight");
  CHECK(up.sizes().vec() == std::vector<int64_t>{40, 24});
  CHECK((up.scalar_type() == at::kBFloat16));
  const Parameters parameters(config, flat);
  CHECK(up.equal(parameters.at("model.layers.1.mlp.up_proj.weight").to(at::kBFloat16)));
}

TEST_CASE("llama and qwen2 exports carry the fields of their own config classes") {
  const Json llama = Json::parse(to_config_json(tiny_config("llama", false), "float32"));
  CHECK(llama["architectures"] == Json{"LlamaForCausalLM"});
  CHECK(llama["mlp_bias"] == false);
  CHECK(llama["pretraining_tp"] == 1);
  CHECK_FALSE(llama.contains("use_sliding_window"));
  const Json qwen2 = Json::parse(to_config_json(tiny_config("qwen2", false), "float32"));
  CHECK(qwen2["architectures"] == Json{"Qwen2ForCausalLM"});
  CHECK_FALSE(qwen2.contains("attention_bias"));
  CHECK(qwen2["use_sliding_window"] == false);
}

TEST_CASE("a saved model is loaded with the same bits, tied or not") {
  for (const bool tied : {true, false}) {
    const SavedModel saved(tied);
    const LoadedModel loaded = load_model_folder(saved.folder.path());
    CHECK(loaded.config == saved.config);
    CHECK(loaded.flat.equal(saved.flat));
  }
}

TEST_CASE("half precision on disk becomes the f32 of its values") {
  const SavedModel saved;
  for (const auto dtype : {at::kHalf, at::kBFloat16}) {
    save_model_folder(saved.folder.path(), saved.config, saved.flat, dtype, {});
    CHECK(load_model_folder(saved.folder.path()).flat.equal(saved.flat.to(dtype).to(at::kFloat)));
  }
}

TEST_CASE("shards named by an index are put together") {
  const SavedModel saved;
  const NamedTensors tensors = saved.tensors();
  const auto middle = tensors.begin() + static_cast<std::ptrdiff_t>(tensors.size() / 2);
  REQUIRE(try_write_safetensors(saved.folder.path() / "model-00001-of-00002.safetensors",
                                {tensors.begin(), middle}));
  REQUIRE(try_write_safetensors(saved.folder.path() / "model-00002-of-00002.safetensors",
                                {middle, tensors.end()}));
  Json index;
  for (auto it = tensors.begin(); it != tensors.end(); ++it) {
    index["weight_map"][it->first] =
        it < middle ? "model-00001-of-00002.safetensors" : "model-00002-of-00002.safetensors";
  }
  const auto index_path = saved.folder.path() / "model.safetensors.index.json";
  write_file(index_path, index.dump());
  std::filesystem::remove(saved.weights_path());
  CHECK(load_model_folder(saved.folder.path()).flat.equal(saved.flat));

  index["weight_map"]["x"] = "../elsewhere.safetensors";
  write_file(index_path, index.dump());
  CHECK(contains(saved.refusal(), "which is no file name"));
  write_file(index_path, "{}");
  CHECK(contains(saved.refusal(), "there is no weight_map"));
}

TEST_CASE("a tied head that was written twice is accepted if it equals the embedding") {
  const SavedModel saved;
  NamedTensors tensors = saved.tensors();
  const Parameters parameters(saved.config, saved.flat);
  tensors.emplace_back("lm_head.weight", parameters.at("model.embed_tokens.weight"));
  tensors.emplace_back("model.layers.0.self_attn.rotary_emb.inv_freq", torch::ones({4}));
  saved.rewrite(tensors);
  CHECK(load_model_folder(saved.folder.path()).flat.equal(saved.flat));
  tensors[tensors.size() - 2].second = parameters.at("model.embed_tokens.weight") + 1;
  saved.rewrite(tensors);
  CHECK(contains(saved.refusal(), "lm_head.weight differs from model.embed_tokens.weight"));
}

TEST_CASE("a tensor that is missing, superfluous, misshapen or of another kind is named") {
  const SavedModel saved;
  const NamedTensors good = saved.tensors();
  NamedTensors bad(good.begin() + 1, good.end());
  saved.rewrite(bad);
  CHECK(contains(saved.refusal(), "tensor \"" + good[0].first + "\" is missing"));
  bad = good;
  bad.emplace_back("model.extra", torch::ones({1}));
  saved.rewrite(bad);
  CHECK(contains(saved.refusal(), "tensor \"model.extra\" is not part of the model"));
  bad = good;
  bad[0] = {"model.embed_tokens.weight", torch::ones({37, 25})};
  saved.rewrite(bad);
  CHECK(contains(saved.refusal(), "has shape [37,25] but config.json asks for [37,24]"));
  bad[0].second = torch::ones({37, 24}, at::kInt);
  saved.rewrite(bad);
  CHECK(contains(saved.refusal(), "is Int; F32, F16 and BF16 can be read"));
}

TEST_CASE("a folder without weights or config is named") {
  const SavedModel saved;
  std::filesystem::remove(saved.weights_path());
  CHECK(contains(saved.refusal(), "neither model.safetensors nor"));
  std::filesystem::remove(saved.folder.path() / "config.json");
  CHECK(contains(saved.refusal(), "config.json: cannot open"));
  CHECK(failure_of([] { load_model_folder("/no/such/model"); }) ==
        "/no/such/model: there is no such model folder");
}

TEST_CASE("an export without the tokenizer it was promised names the file") {
  const ScratchFolder folder, tokenizer;
  const ModelConfig config = tiny_config("llama", true);
  const Tensor flat = lively_weights(config, 1);
  CHECK(contains(failure_of([&] {
                   save_model_folder(folder.path(), config, flat, at::kFloat, tokenizer.path());
                 }),
                 "tokenizer.json: cannot open"));
}

TEST_CASE("an export into a folder that was taken away fails, and does not make it anew") {
  const ScratchFolder folder;
  const ModelConfig config = tiny_config("llama", true);
  const Tensor flat = lively_weights(config, 1);
  const auto gone = folder.path() / "gone";
  CHECK(contains(failure_of([&] { save_model_folder(gone, config, flat, at::kFloat, {}); }),
                 gone.string()));
  CHECK_FALSE(std::filesystem::exists(gone));
}

}  // namespace
}  // namespace pelago::model
