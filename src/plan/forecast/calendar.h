// Days, as scenarios say them: "2026-10-01".
#pragma once

#include <string>
#include <string_view>

namespace pelago::plan {

/// Days since 1970-01-01. Throws Failure (exit 2) naming where and the text if it is no date.
int parse_day(std::string_view text, const std::string& where);
/// "2026-10-01".
std::string day_text(double day);

}  // namespace pelago::plan
