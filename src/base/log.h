// One event, one line, key=value, the unit in the key:
//   log_info("round done round={} sent_bytes={}", round, sent_bytes);
// Lines go to standard error, so that standard output stays for results.
#pragma once

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <string>
#include <utility>

namespace pelago {

enum class LogLevel { kDebug, kInfo, kWarn, kError };

/// Sets what is printed and who prints it. who: "lingang", "lingang/0", "coordinator"; may be
/// empty.
inline void init_log(LogLevel level, const std::string& who = "") {
  auto logger = spdlog::get("pelago");
  if (!logger) logger = spdlog::stderr_color_mt("pelago");
  spdlog::set_default_logger(logger);
  spdlog::set_pattern(who.empty() ? "%H:%M:%S.%e %^%l%$ %v"
                                  : "%H:%M:%S.%e %^%l%$ who=" + who + " %v");
  constexpr spdlog::level::level_enum kLevels[] = {
      spdlog::level::debug, spdlog::level::info, spdlog::level::warn, spdlog::level::err};
  spdlog::set_level(kLevels[static_cast<int>(level)]);
}

template <typename... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
  spdlog::debug(format, std::forward<Args>(args)...);
}
template <typename... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  spdlog::info(format, std::forward<Args>(args)...);
}
template <typename... Args>
void log_warn(fmt::format_string<Args...> format, Args&&... args) {
  spdlog::warn(format, std::forward<Args>(args)...);
}
template <typename... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  spdlog::error(format, std::forward<Args>(args)...);
}

}  // namespace pelago
