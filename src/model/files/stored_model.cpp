// Weights in Hugging Face's layout, read. Every tensor of the files must be wanted and every wanted
// tensor must be there in its shape, but for two customs of published models: rotary tables that
// old Llama files carry (they follow from the config), and a tied head that was written a second
// time (accepted if it equals the embedding). Quantised matrices are three tensors each.
#include "model/stored_model.h"

#include <string_view>

#include "base/error.h"
#include "base/files.h"
#include "base/text/json.h"
#include "chips/torch.h"

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

bool is_float(const Tensor& tensor, bool with_f32) {
  const auto dtype = tensor.scalar_type();
  return (with_f32 && dtype == at::kFloat) || dtype == at::kHalf || dtype == at::kBFloat16;
}

std::string shape_text(at::IntArrayRef shape) {
  return fmt::format("[{}]", fmt::join(shape.vec(), ","));
}

/// Fails unless the tensor has the shape that follows from config.json.
void check_shape(const Tensor& stored,
                 const std::vector<int64_t>& wanted,
                 const std::string& name,
                 const std::string& path) {
  if (stored.sizes() == at::IntArrayRef(wanted)) return;
  fail("{}: tensor \"{}\" has shape {} but config.json asks for {}",
       path,
       name,
       shape_text(stored.sizes()),
       shape_text(wanted));
}

}  // namespace

StoredModel::StoredModel(const fs::path& folder) : folder_(folder) {
  if (!fs::is_directory(folder)) fail("{}: there is no such model folder", folder.string());
  config_ = read_model_config(folder / "config.json");
  quantisation_ = read_quantisation(folder / "config.json");
  for (const ParameterSpec& spec : parameter_specs(config_)) shapes_[spec.name] = spec.shape;
  for (const fs::path& path : weight_files(folder)) {
    files_.push_back(std::make_unique<SafetensorsFile>(path));
    for (const std::string& name : files_.back()->names()) {
      take(*files_.back(), name, path.string());
    }
  }
  for (const auto& [name, shape] : shapes_) {
    const auto found = parameters_.find(name);
    if (found == parameters_.end()) fail("{}: tensor \"{}\" is missing", folder.string(), name);
    if (!found->second.numbers.defined()) check_levels(name, found->second);
  }
  if (second_head_.defined() &&
      !second_head_.to(at::kFloat).equal(parameters_.at(kEmbeddingName).numbers.to(at::kFloat))) {
    fail("{}: {} differs from {} although config.json ties them; set tie_word_embeddings to false",
         folder.string(),
         kHeadName,
         kEmbeddingName);
  }
}

void StoredModel::take(const SafetensorsFile& file,
                       const std::string& name,
                       const std::string& path) {
  if (name.ends_with("rotary_emb.inv_freq")) return;
  std::string parameter_name = name;
  std::string_view suffix;
  if (quantisation_ && !shapes_.contains(name)) {
    for (const char* known : {kPackedSuffix, kScaleSuffix, kShapeSuffix}) {
      if (!name.ends_with(std::string(".weight") + known)) continue;
      suffix = known;
      parameter_name = name.substr(0, name.size() - suffix.size());
    }
  }
  const bool is_second_head = config_.tie_word_embeddings && name == kHeadName;
  const auto found = shapes_.find(is_second_head ? kEmbeddingName : parameter_name);
  if (found == shapes_.end() || (!suffix.empty() && found->second.size() != 2)) {
    fail("{}: tensor \"{}\" is not part of the model that config.json describes", path, name);
  }
  const std::vector<int64_t>& shape = found->second;
  const Tensor stored = file.tensor(name);
  StoredParameter& parameter = parameters_[found->first];
  Tensor* place = &parameter.numbers;
  std::vector<int64_t> wanted = shape;
  if (suffix == kShapeSuffix) return;  // follows from config.json
  if (suffix == kPackedSuffix) {
    place = &parameter.packed;
    wanted[1] = shape[1] * quantisation_->bits / 32;
    if (stored.scalar_type() != at::kInt) {
      fail("{}: tensor \"{}\" is {}; levels are I32", path, name, toString(stored.scalar_type()));
    }
  } else if (suffix == kScaleSuffix) {
    place = &parameter.scales;
    wanted[1] = shape[1] / quantisation_->group_size;
  }
  check_shape(stored, wanted, name, path);
  if (suffix != kPackedSuffix && !is_float(stored, suffix.empty())) {
    fail("{}: tensor \"{}\" is {}; {}F16 and BF16 can be read",
         path,
         name,
         toString(stored.scalar_type()),
         suffix.empty() ? "F32, " : "");
  }
  if (is_second_head) {
    second_head_ = stored;
    return;
  }
  if (place->defined()) fail("{}: tensor \"{}\" is in two files", path, name);
  *place = stored;
}

void StoredModel::check_levels(const std::string& name, const StoredParameter& parameter) const {
  if (!parameter.packed.defined() && !parameter.scales.defined()) {
    fail("{}: tensor \"{}\" is missing", folder_.string(), name);
  }
  for (const auto& [tensor, suffix] :
       {std::pair{&parameter.packed, kPackedSuffix}, std::pair{&parameter.scales, kScaleSuffix}}) {
    if (tensor->defined()) continue;
    fail("{}: tensor \"{}{}\" is missing", folder_.string(), name, suffix);
  }
  const int64_t inputs = shapes_.at(name).at(1);
  if (inputs % quantisation_->group_size != 0) {
    fail("{}: quantization_config has groups of {}, which do not divide the {} inputs of {}",
         (folder_ / "config.json").string(),
         quantisation_->group_size,
         inputs,
         name);
  }
}

Tensor to_numbers(const StoredParameter& parameter,
                  const std::optional<Quantisation>& quantisation) {
  if (parameter.numbers.defined()) return parameter.numbers.to(at::kFloat);
  PELAGO_ASSERT(quantisation.has_value(), "levels come with their format");
  const int64_t bits = quantisation->bits;
  const int64_t num_outputs = parameter.packed.size(0);
  const Tensor bytes = parameter.packed.view(at::kByte);  // [Out, In * bits / 8]
  const Tensor levels = bits == 8
                            ? bytes
                            : at::stack({bytes.bitwise_and(15), bytes.bitwise_right_shift(4)}, -1)
                                  .view({num_outputs, -1});  // [Out,In]
  const Tensor numbers = levels.to(at::kFloat) - static_cast<double>(int64_t{1} << (bits - 1));
  const Tensor scales = parameter.scales.to(at::kFloat).unsqueeze(-1);  // [Out,G,1]
  return (numbers.view({num_outputs, -1, quantisation->group_size}) * scales)
      .view({num_outputs, -1});
}

}  // namespace pelago::model
