#include "cli/event_line.h"

#include <algorithm>

#include "base/text/json.h"

namespace pelago::cli {

std::optional<std::string> event_line(const std::string& name, const std::string& fields_json) {
  const bool is_routine =
      name == "commit" || name == "messages_refused" || name.rfind("checkpoint", 0) == 0;
  if (is_routine) return std::nullopt;
  std::string line = name;
  std::replace(line.begin(), line.end(), '_', ' ');
  const auto fields = try_parse_json(fields_json);
  if (!fields.is_object()) return line;
  for (const auto& [key, value] : fields.items()) {
    const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    if (!text.empty()) line += " " + key + "=" + text;
  }
  return line;
}

}  // namespace pelago::cli
