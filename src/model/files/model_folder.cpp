// Weights in Hugging Face's layout, as one flat vector: what training, sampling and export work on.
// Quantised weights become numbers again.
#include <filesystem>
#include <string>

#include "base/error.h"
#include "base/files.h"
#include "base/text/json.h"
#include "model/safetensors.h"
#include "model/stored_model.h"
#include "model/transformer.h"

namespace pelago::model {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* kWeightsName = "model.safetensors";

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
  const StoredModel stored(folder);
  LoadedModel model{.config = stored.config(),
                    .flat = at::empty({stored.config().num_parameters()}, at::kFloat)};
  int64_t begin = 0;
  for (const ParameterSpec& spec : parameter_specs(model.config)) {
    const StoredParameter& parameter = stored.parameter(spec.name);
    const Tensor view = model.flat.narrow(0, begin, spec.num_values()).view(spec.shape);
    view.copy_(parameter.numbers.defined() ? parameter.numbers
                                           : to_numbers(parameter, stored.quantisation()));
    begin += spec.num_values();
  }
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
