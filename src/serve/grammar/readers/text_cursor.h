// Reads a text from left to right and says where it was when something is wrong.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"

namespace pelago::serve {

class TextCursor {
 public:
  /// text outlives the cursor. what: how messages call it.
  TextCursor(std::string_view text, std::string what) : text_(text), what_(std::move(what)) {}

  bool is_at_end() const { return at_ >= text_.size(); }
  /// The byte that many places ahead; 0 past the end.
  char peek(size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
  }
  bool take(char c) {
    if (is_at_end() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool take(std::string_view word) {
    if (!text_.substr(at_).starts_with(word)) return false;
    at_ += word.size();
    return true;
  }
  void expect(char c) {
    if (!take(c)) refuse(fmt::format("a '{}' is missing", c));
  }
  void step_back() { --at_; }
  [[noreturn]] void refuse(const std::string& reason) const {
    fail_usage("{}: {} at byte {}", what_, reason, at_);
  }

  int64_t read_number(int64_t max) {
    int64_t number = 0;
    const size_t begin = at_;
    while (peek() >= '0' && peek() <= '9') {
      number = number * 10 + (text_[at_++] - '0');
      if (number > max) refuse(fmt::format("a number above {}", max));
    }
    if (at_ == begin) refuse("a number is missing");
    return number;
  }

  uint32_t read_hex(int num_digits) {
    uint32_t number = 0;
    for (int idx = 0; idx < num_digits; ++idx) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) refuse("a hexadecimal digit is missing");
      number = number * 16 + static_cast<uint32_t>(digit);
      ++at_;
    }
    return number;
  }

  uint32_t read_code_point() {
    if (is_at_end()) refuse("the text ends too soon");
    const auto first = static_cast<uint8_t>(text_[at_++]);
    if (first < 0x80) return first;
    const int num_more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : first >= 0xC2 ? 1 : -1;
    if (num_more < 0) refuse("no UTF-8");
    uint32_t point = first & (0x3FU >> num_more);
    for (int idx = 0; idx < num_more; ++idx) {
      const auto next = static_cast<uint8_t>(peek());
      if ((next & 0xC0) != 0x80) refuse("no UTF-8");
      point = point << 6 | (next & 0x3FU);
      ++at_;
    }
    return point;
  }

 private:
  std::string_view text_;
  std::string what_;
  size_t at_ = 0;
};

}  // namespace pelago::serve
