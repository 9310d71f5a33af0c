// Weights in Hugging Face's layout, both ways. Every tensor of the files must be wanted and every
// wanted tensor must be there in its shape, but for two customs of published models: rotary tables
// that old Llama files carry (they follow from the config), and a tied head that was written a
// second time (accepted if it equals the embedding).
#include <filesystem>
#include <map>
#include <string>

#include "base/error.h"
#include "base/files.h"
#include "base/text/json.h"
#include "model/safetensors.h"
#include "model/transformer.h"

namespace pelago::model {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* kWeightsName = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kEmbeddingName = "model.embed_tokens.weight";
constexpr const char* kHeadName = "lm_head.weight";

/// The files that hold the weights: one, or the shards that the index names.
std::vector<fs::path> weight_files(const fs::path& folder) {
  if (fs::exists(folder / kWeightsName)) return {folder / kWeightsName};
  const fs::path index_path = folder / kIndexName;
  if (!fs::exists(index_path)) {
    fail("{}: neither {} nor {} is there; other formats (.bin, .pth) are not read, convert them",
         folder.string(),
         kWeightsName,
         kIndexName);
  }
  const Json index = Json::parse(read_text_file(index_path), nullptr, /*allow_exceptions=*/false);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    fail("{}: there is no weight_map; the file is corrupt", index_path.string());
  }
  std::map<std::string, fs::path> shards;
  for (const auto& [name, value] : index["weight_map"].items()) {
    const std::string file = value.is_string() ? value.get<std::string>() : "";
    if (file.empty() || fs::path(file).filename() != file) {
      fail("{}: tensor \"{}\" lies in {}, which is no file name; the file is corrupt",
           index_path.string(),
           name,
           value.dump());
    }
    shards[file] = folder / file;
  }
  std::vector<fs::path> files;
  for (const auto& [file, path] : shards) files.push_back(path);
  return files;
}

/// The flat vector being filled, and which of its parts still wait.
class FlatLoader {
 public:
  explicit FlatLoader(const ModelConfig& config)
      : config_(config), flat_(at::zeros({config.num_parameters()}, at::kFloat)) {
    int64_t begin = 0;
    for (ParameterSpec& spec : parameter_specs(config)) {
      const int64_t num_values = spec.num_values();
      Part& part = parts_[spec.name];
      part.view = flat_.narrow(0, begin, num_values).view(spec.shape);
      begin += num_values;
    }
  }

  void take_file(const fs::path& path) {
    const SafetensorsFile file(path);
    for (const std::string& name : file.names()) take_tensor(file, name, path.string());
  }

  /// Throws Failure naming what never came.
  Tensor finish(const fs::path& folder) {
    for (const auto& [name, part] : parts_) {
      if (!part.is_filled) fail("{}: tensor \"{}\" is missing", folder.string(), name);
    }
    if (second_head_.defined() && !second_head_.equal(parts_.at(kEmbeddingName).view)) {
      fail(
          "{}: {} differs from {} although config.json ties them; set tie_word_embeddings to false",
          folder.string(),
          kHeadName,
          kEmbeddingName);
    }
    return flat_;
  }

 private:
  struct Part {
    Tensor view;  // of the flat vector, f32
    bool is_filled = false;
  };

  void take_tensor(const SafetensorsFile& file, const std::string& name, const std::string& path) {
    if (name.ends_with("rotary_emb.inv_freq")) return;
    const bool is_second_head = config_.tie_word_embeddings && name == kHeadName;
    const auto found = parts_.find(is_second_head ? kEmbeddingName : name);
    if (found == parts_.end()) {
      fail("{}: tensor \"{}\" is not part of the model that config.json describes", path, name);
    }
    Part& part = found->second;
    const Tensor stored = file.tensor(name);
    if (stored.sizes() != part.view.sizes()) {
      fail("{}: tensor \"{}\" has shape [{}] but config.json asks for [{}]",
           path,
           name,
           fmt::join(stored.sizes().vec(), ","),
           fmt::join(part.view.sizes().vec(), ","));
    }
    const auto dtype = stored.scalar_type();
    if (dtype != at::kFloat && dtype != at::kHalf && dtype != at::kBFloat16) {
      fail("{}: tensor \"{}\" is {}; F32, F16 and BF16 can be read", path, name, toString(dtype));
    }
    if (is_second_head) {
      second_head_ = stored.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
      return;
    }
    if (part.is_filled) fail("{}: tensor \"{}\" is in two files", path, name);
    part.view.copy_(stored);
    part.is_filled = true;
  }

  const ModelConfig& config_;
  Tensor flat_;  // f32 [N]
  std::map<std::string, Part> parts_;
  Tensor second_head_;  // [V,D], undefined unless a tied head was written twice
};

std::string dtype_word(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::ScalarType::Float:
      return "float32";
    case c10::ScalarType::Half:
      return "float16";
    case c10::ScalarType::BFloat16:
      return "bfloat16";
    default:
      fail("a model cannot be saved as {}: choose f32, f16 or bf16", toString(dtype));
  }
}

std::string to_generation_config_json(const ModelConfig& config) {
  Json json;
  json["_from_model_config"] = true;
  if (config.bos_token_id >= 0) json["bos_token_id"] = config.bos_token_id;
  if (config.eos_token_id >= 0) json["eos_token_id"] = config.eos_token_id;
  json["transformers_version"] = "4.51.0";
  return json.dump(2) + "\n";
}

}  // namespace

LoadedModel load_model_folder(const fs::path& folder) {
  if (!fs::is_directory(folder)) fail("{}: there is no such model folder", folder.string());
  LoadedModel model;
  model.config = read_model_config(folder / "config.json");
  FlatLoader loader(model.config);
  for (const fs::path& path : weight_files(folder)) loader.take_file(path);
  model.flat = loader.finish(folder);
  return model;
}

void save_model_folder(const fs::path& folder,
                       const ModelConfig& config,
                       const Tensor& flat,
                       c10::ScalarType dtype,
                       const fs::path& tokenizer_dir) {
  PELAGO_ASSERT(flat.device().is_cpu() && flat.scalar_type() == at::kFloat &&
                    flat.numel() == config.num_parameters(),
                "the whole model is given as f32 on the host");
  const std::string config_json = to_config_json(config, dtype_word(dtype));
  const Tensor rounded = flat.to(dtype);  // [N]
  std::vector<std::pair<std::string, Tensor>> tensors;
  int64_t begin = 0;
  for (const ParameterSpec& spec : parameter_specs(config)) {
    tensors.emplace_back(spec.name, rounded.narrow(0, begin, spec.num_values()).view(spec.shape));
    begin += spec.num_values();
  }
  const Status status = try_write_safetensors(folder / kWeightsName, tensors, {{"format", "pt"}});
  if (!status) throw Failure(status.error().message);
  write_file(folder / "config.json", config_json);
  write_file(folder / "generation_config.json", to_generation_config_json(config));
  if (tokenizer_dir.empty()) return;
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
    write_file(folder / name, read_text_file(tokenizer_dir / name));
  }
}

}  // namespace pelago::model
