#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

namespace pelago {

namespace {

constexpr spdlog::level::level_enum level_of(LogLevel level) {
  constexpr spdlog::level::level_enum kLevels[] = {
      spdlog::level::debug, spdlog::level::info, spdlog::level::warn, spdlog::level::err};
  return kLevels[static_cast<int>(level)];
}

}  // namespace

void init_log(LogLevel level, const std::string& who) {
  auto logger = spdlog::get("pelago");
  if (!logger) logger = spdlog::stderr_color_mt("pelago");
  spdlog::set_default_logger(logger);
  spdlog::set_pattern(who.empty() ? "%H:%M:%S.%e %^%l%$ %v"
                                  : "%H:%M:%S.%e %^%l%$ who=" + who + " %v");
  spdlog::set_level(level_of(level));
}

void log_line(LogLevel level, fmt::string_view format, fmt::format_args args) {
  spdlog::logger* logger = spdlog::default_logger_raw();
  if (!logger->should_log(level_of(level))) return;
  logger->log(level_of(level), fmt::vformat(format, args));
}

}  // namespace pelago
