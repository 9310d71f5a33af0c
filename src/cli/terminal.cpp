#include "cli/terminal.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>

#include "base/clock.h"

namespace pelago::cli {

namespace {

void write_all(int descriptor, std::string_view text) {
  while (!text.empty()) {
    const ssize_t put = ::write(descriptor, text.data(), text.size());
    if (put <= 0) return;  // whoever read us is gone; the run goes on
    text.remove_prefix(static_cast<size_t>(put));
  }
}

}  // namespace

bool is_terminal(int descriptor) { return ::isatty(descriptor) != 0; }

int terminal_columns(int descriptor) {
  winsize size{};
  if (::ioctl(descriptor, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

std::string coloured(std::string_view text, Colour colour, int descriptor) {
  if (!is_terminal(descriptor)) return std::string(text);
  constexpr const char* kCodes[] = {"32", "33", "31", "1", "2"};
  return fmt::format("\033[{}m{}\033[0m", kCodes[static_cast<int>(colour)], text);
}

LiveLine::LiveLine(int descriptor) : descriptor_(descriptor) {}

void LiveLine::draw(const std::string& line, double plain_every_s) {
  if (!is_terminal(descriptor_)) {
    const double now_s = steady_now_s();
    if (now_s - last_plain_s_ < plain_every_s) return;
    last_plain_s_ = now_s;
    write_all(descriptor_, line + "\n");
    return;
  }
  const auto columns = static_cast<size_t>(terminal_columns(descriptor_));
  write_all(descriptor_, "\r\033[K" + line.substr(0, columns - 1));
  drawn_ = true;
}

void LiveLine::print_below(const std::string& line) {
  end();
  write_all(descriptor_, line + "\n");
}

void LiveLine::end() {
  if (drawn_) write_all(descriptor_, "\n");
  drawn_ = false;
}

std::string short_number(double value) {
  const double size = std::abs(value);
  if (size >= 1e9) return fmt::format("{:.2f}G", value / 1e9);
  if (size >= 1e6) return fmt::format("{:.2f}M", value / 1e6);
  if (size >= 1e3) return fmt::format("{:.2f}k", value / 1e3);
  return fmt::format("{:.0f}", value);
}

std::string short_duration(double seconds) {
  const auto whole = static_cast<int64_t>(std::ceil(std::max(0.0, seconds)));
  if (whole >= 3600)
    return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

std::string short_bytes(double bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (bytes >= 1024 && unit < 4) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.1f} {}", bytes, kUnits[unit]);
}

}  // namespace pelago::cli
