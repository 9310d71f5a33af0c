// What a terminal can show: colour and a line that is drawn again in place. Elsewhere plain lines.
#pragma once

#include <string>
#include <string_view>

namespace pelago::cli {

/// Standard error is where progress goes; standard output stays for results.
bool is_terminal(int descriptor);
int terminal_columns(int descriptor);  // 80 if unknown

/// A text in colour if standard output is a terminal, else as it is.
enum class Colour { kGreen, kYellow, kRed, kBold, kDim };
std::string coloured(std::string_view text, Colour colour, int descriptor);

/// Lines redrawn in place on a terminal; elsewhere a plain line now and then.
class LiveLine {
 public:
  explicit LiveLine(int descriptor);
  /// Takes the place of what was drawn before. Elsewhere printed only if plain_every_s have passed
  /// since the last.
  void draw(const std::string& line, double plain_every_s);
  /// Leaves the last line standing and prints this one below it.
  void print_below(const std::string& line);
  /// Ends the line, so that what is printed next begins on its own.
  void end();

 private:
  int descriptor_;
  bool drawn_ = false;
  double last_plain_s_ = -1e9;
};

/// "1.9k", "23", "4.56M": three figures or so.
std::string short_number(double value);
/// "2:31", "1:02:31".
std::string short_duration(double seconds);
/// "1.3 GiB", "640 KiB".
std::string short_bytes(double bytes);

}  // namespace pelago::cli
