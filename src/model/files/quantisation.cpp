#include "model/quantisation.h"

#include "base/error.h"
#include "base/files.h"
#include "base/text/json.h"

namespace pelago::model {

namespace {

using Json = nlohmann::json;

[[noreturn]] void refuse(const std::string& where, const std::string& field, const Json& value) {
  fail(
      "{}: quantization_config: {} is {}: of quantised weights only compressed-tensors' "
      "pack-quantized can be read, symmetric, 4 or 8 bits, in groups of 32 to 256, without "
      "activations; quantise the plain model with pelago compress quantize",
      where,
      field,
      value.is_null() ? "missing" : value.dump());
}

Json field_of(const Json& object, const char* key) {
  return object.is_object() && object.contains(key) ? object[key] : Json();
}

void require(const std::string& where, const Json& object, const char* key, const Json& wanted) {
  const Json value = field_of(object, key);
  if (value != wanted) refuse(where, key, value);
}

}  // namespace

std::optional<Quantisation> read_quantisation(const std::filesystem::path& config_json) {
  const std::string where = config_json.string();
  const Json json = Json::parse(read_text_file(config_json), nullptr, /*allow_exceptions=*/false);
  const Json config = field_of(json, "quantization_config");
  if (config.is_null()) return std::nullopt;
  require(where, config, "quant_method", "compressed-tensors");
  require(where, config, "format", "pack-quantized");
  const Json groups = field_of(config, "config_groups");
  if (!groups.is_object() || groups.size() != 1) refuse(where, "config_groups", groups);
  const Json& group = groups.begin().value();
  const Json targets = field_of(group, "targets");
  if (targets != Json::array({"Linear"})) refuse(where, "targets", targets);
  const Json activations = field_of(group, "input_activations");
  if (!activations.is_null()) refuse(where, "input_activations", activations);
  const Json weights = field_of(group, "weights");
  require(where, weights, "type", "int");
  require(where, weights, "strategy", "group");
  require(where, weights, "symmetric", true);
  const Json order = field_of(weights, "actorder");
  if (!order.is_null() && order != Json("static") && order != Json(false)) {
    refuse(where, "actorder", order);
  }
  const Json bits = field_of(weights, "num_bits");
  const Json size = field_of(weights, "group_size");
  if (bits != 4 && bits != 8) refuse(where, "num_bits", bits);
  if (size != 32 && size != 64 && size != 128 && size != 256) refuse(where, "group_size", size);
  return Quantisation{.bits = bits.get<int>(), .group_size = size.get<int64_t>()};
}

std::string with_quantisation(const std::string& config_json, const Quantisation& quantisation) {
  Json json = Json::parse(config_json);
  const Json weights = {{"num_bits", quantisation.bits},
                        {"type", "int"},
                        {"symmetric", true},
                        {"strategy", "group"},
                        {"group_size", quantisation.group_size},
                        {"dynamic", false},
                        {"observer", "minmax"},
                        {"actorder", nullptr},
                        {"block_structure", nullptr}};
  json["quantization_config"] = {{"quant_method", "compressed-tensors"},
                                 {"format", "pack-quantized"},
                                 {"quantization_status", "compressed"},
                                 {"ignore", {"lm_head"}},
                                 {"kv_cache_scheme", nullptr},
                                 {"config_groups",
                                  {{"group_0",
                                    {{"targets", {"Linear"}},
                                     {"weights", weights},
                                     {"input_activations", nullptr},
                                     {"output_activations", nullptr}}}}}};
  return json.dump(2) + "\n";
}

}  // namespace pelago::model
