// One event, one line, key=value, the unit in the key:
//   log_info("round done round={} sent_bytes={}", round, sent_bytes);
// Lines go to standard error, so that standard output stays for results.
#pragma once

#include <fmt/format.h>

#include <string>

namespace pelago {

enum class LogLevel { kDebug, kInfo, kWarn, kError };

/// Sets what is printed and who prints it. who: "lingang", "lingang/0", "coordinator"; may be
/// empty.
void init_log(LogLevel level, const std::string& who = "");

/// What the four below call, once for all forms of arguments.
void log_line(LogLevel level, fmt::string_view format, fmt::format_args args);

template <typename... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kDebug, format, fmt::make_format_args(args...));
}
template <typename... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kInfo, format, fmt::make_format_args(args...));
}
template <typename... Args>
void log_warn(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kWarn, format, fmt::make_format_args(args...));
}
template <typename... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kError, format, fmt::make_format_args(args...));
}

}  // namespace pelago
