// Weights in few bits on disk: the pack-quantized format of the compressed-tensors library, which
// vLLM reads too. A matrix NAME.weight [Out,In] is stored as
//   NAME.weight_packed  I32 [Out, In * bits / 32]: level + 2^(bits-1), the first value lowest
//   NAME.weight_scale   F16 or BF16 [Out, In / group]: a value is level * scale
//   NAME.weight_shape   I64 [2]
// and config.json says so under quantization_config. Matrices that it does not touch (embedding,
// head) are plain. No torch here.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace pelago::model {

struct Quantisation {
  int bits = 8;             // 4 or 8
  int64_t group_size = 64;  // values that share a scale: 32, 64, 128 or 256
  bool operator==(const Quantisation&) const = default;
};

inline constexpr const char* kPackedSuffix = "_packed";
inline constexpr const char* kScaleSuffix = "_scale";
inline constexpr const char* kShapeSuffix = "_shape";

/// What config.json says; none if its weights are plain. Throws Failure naming file, field and
/// value for a format that is not the above.
std::optional<Quantisation> read_quantisation(const std::filesystem::path& config_json);
/// The text of a config.json with quantization_config added. The head and the embedding stay plain.
std::string with_quantisation(const std::string& config_json, const Quantisation& quantisation);

}  // namespace pelago::model
