// An event of a run as a line for people; the JSON stands in events.jsonl.
#pragma once

#include <optional>
#include <string>

namespace pelago::cli {

/// "site joined site=guizhou address=127.0.0.1:39563". Nothing for events that come all the time
/// (commits, checkpoints). fields_json: an object.
std::optional<std::string> event_line(const std::string& name, const std::string& fields_json);

}  // namespace pelago::cli
