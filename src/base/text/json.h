// JSON as every room takes it. The library is headers alone: its parser and its writer would be
// compiled again in each source that reads or writes a line, at a second or two each. Here they are
// compiled once, in json.cpp.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

extern template class nlohmann::basic_json<>;
extern template class nlohmann::detail::serializer<nlohmann::json>;

namespace pelago {

/// Throws nlohmann::json::parse_error.
nlohmann::json parse_json(std::string_view text);
/// A discarded value (is_discarded()) if text is not JSON.
nlohmann::json try_parse_json(std::string_view text);

}  // namespace pelago
