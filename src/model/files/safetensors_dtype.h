// The dtype strings of safetensors.
#pragma once

#include <c10/core/ScalarType.h>

#include <array>
#include <optional>
#include <string_view>
#include <utility>

namespace pelago::model {

inline constexpr std::array<std::pair<std::string_view, c10::ScalarType>, 10> kDtypeNames = {{
    {"F64", c10::ScalarType::Double},
    {"F32", c10::ScalarType::Float},
    {"F16", c10::ScalarType::Half},
    {"BF16", c10::ScalarType::BFloat16},
    {"I64", c10::ScalarType::Long},
    {"I32", c10::ScalarType::Int},
    {"I16", c10::ScalarType::Short},
    {"I8", c10::ScalarType::Char},
    {"U8", c10::ScalarType::Byte},
    {"BOOL", c10::ScalarType::Bool},
}};

inline std::optional<c10::ScalarType> dtype_of_name(std::string_view wanted) {
  for (const auto& [name, dtype] : kDtypeNames) {
    if (name == wanted) return dtype;
  }
  return std::nullopt;
}

inline std::optional<std::string_view> name_of_dtype(c10::ScalarType wanted) {
  for (const auto& [name, dtype] : kDtypeNames) {
    if (dtype == wanted) return name;
  }
  return std::nullopt;
}

}  // namespace pelago::model
