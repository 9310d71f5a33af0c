#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "serve/template/syntax/syntax.h"

namespace pelago::serve {

namespace {

bool is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v';
}
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool begins_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (c & 0x80) != 0;
}

void append_code_point(std::string& out, uint32_t code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xc0 | (code >> 6));
    out += static_cast<char>(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xe0 | (code >> 12));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
    out += static_cast<char>(0x80 | (code & 0x3f));
  } else {
    out += static_cast<char>(0xf0 | ((code >> 18) & 7));
    out += static_cast<char>(0x80 | ((code >> 12) & 0x3f));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
    out += static_cast<char>(0x80 | (code & 0x3f));
  }
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) {
    source_.reserve(source.size());
    for (size_t i = 0; i < source.size(); ++i) {
      if (source[i] == '\r') {
        if (i + 1 >= source.size() || source[i + 1] != '\n') source_ += '\n';
      } else {
        source_ += source[i];
      }
    }
    if (source_.ends_with('\n')) source_.pop_back();
  }

  std::vector<Token> run() {
    while (at_ < source_.size()) {
      const size_t tag = next_tag();
      add_text(tag);
      if (tag >= source_.size()) break;
      const char kind = source_[tag + 1];
      move_to(tag + 2);
      if (at_ < source_.size() && (source_[at_] == '-' || source_[at_] == '+')) move_to(at_ + 1);
      if (kind == '#') {
        skip_comment();
      } else if (kind == '%' && skip_raw()) {
        continue;
      } else {
        read_tag(kind == '%');
      }
    }
    add(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw TemplateError(fmt::format("template line {}: {}", line_, what));
  }
  void add(Token::Kind kind, std::string text, Value value = {}) {
    tokens_.push_back(
        {.kind = kind, .line = line_, .text = std::move(text), .value = std::move(value)});
  }
  void move_to(size_t to) {
    to = std::min(to, source_.size());
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(to),
                                         '\n'));
    at_ = to;
  }
  bool has(std::string_view text) const { return source_.compare(at_, text.size(), text) == 0; }

  size_t next_tag() const {
    for (size_t brace = source_.find('{', at_); brace != std::string::npos;
         brace = source_.find('{', brace + 1)) {
      const char next = brace + 1 < source_.size() ? source_[brace + 1] : ' ';
      if (next == '{' || next == '%' || next == '#') return brace;
    }
    return source_.size();
  }

  // The text up to a tag, without what the tag's sign or lstrip_blocks takes away.
  void add_text(size_t tag) {
    std::string text = source_.substr(at_, tag - at_);
    const bool starts_line = at_ == 0 || source_[at_ - 1] == '\n';
    if (tag < source_.size()) {
      const char sign = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
      if (sign == '-') {
        while (!text.empty() && is_blank(text.back())) text.pop_back();
      } else if (source_[tag + 1] != '{' && sign != '+') {
        const size_t newline = text.rfind('\n');
        const size_t line_start = newline == std::string::npos ? 0 : newline + 1;
        if ((line_start > 0 || starts_line) &&
            text.find_first_not_of(" \t\f\v", line_start) == std::string::npos) {
          text.erase(line_start);
        }
      }
    }
    if (!text.empty()) add(Token::Kind::kText, std::move(text));
    move_to(tag);
  }

  // Behind the end of a tag: at_ stands behind "%}".
  void after_tag(bool strips, bool trims) {
    size_t to = at_;
    if (strips) {
      while (to < source_.size() && is_blank(source_[to])) ++to;
    } else if (trims && to < source_.size() && source_[to] == '\n') {
      ++to;
    }
    move_to(to);
  }

  void skip_comment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) refuse("a comment has no end");
    const char sign = end > at_ ? source_[end - 1] : ' ';
    move_to(end + 2);
    after_tag(sign == '-', sign != '+');
  }

  // {% raw %} ... {% endraw %}: text as it stands.
  bool skip_raw() {
    size_t to = at_;
    while (to < source_.size() && is_blank(source_[to])) ++to;
    if (source_.compare(to, 3, "raw") != 0) return false;
    const size_t close = source_.find("%}", to);
    const std::string_view rest = std::string_view(source_).substr(to + 3, close - to - 3);
    if (close == std::string::npos || rest.find_first_not_of(" -+") != std::string_view::npos)
      return false;
    move_to(close + 2);
    after_tag(source_[close - 1] == '-', source_[close - 1] != '+');
    size_t end = source_.find("endraw", at_);
    while (end != std::string::npos) {
      const size_t begin = source_.rfind("{%", end);
      if (begin != std::string::npos && begin >= at_ &&
          source_.find_first_not_of(" -+", begin + 2) == end) {
        add_text(begin);
        const size_t last = source_.find("%}", end);
        if (last == std::string::npos) break;
        move_to(last + 2);
        after_tag(source_[last - 1] == '-', source_[last - 1] != '+');
        return true;
      }
      end = source_.find("endraw", end + 1);
    }
    refuse("raw has no endraw");
  }

  void read_tag(bool is_block) {
    add(is_block ? Token::Kind::kBlockBegin : Token::Kind::kOutputBegin, "");
    const std::string_view close = is_block ? "%}" : "}}";
    int depth = 0;
    while (true) {
      while (at_ < source_.size() && is_blank(source_[at_])) move_to(at_ + 1);
      if (at_ >= source_.size()) refuse(is_block ? "{% has no end" : "{{ has no end");
      const bool is_signed = source_[at_] == '-' || source_[at_] == '+';
      if (depth == 0 && (has(close) || (is_signed && source_.compare(at_ + 1, 2, close) == 0))) {
        const char sign = source_[at_];
        move_to(at_ + (is_signed ? 3 : 2));
        add(is_block ? Token::Kind::kBlockEnd : Token::Kind::kOutputEnd, "");
        after_tag(sign == '-', is_block && sign != '+');
        return;
      }
      depth = read_token(depth);
    }
  }

  int read_token(int depth) {
    const char c = source_[at_];
    if (c == '"' || c == '\'') {
      read_string(c);
    } else if (is_digit(c)) {
      read_number();
    } else if (begins_name(c)) {
      size_t end = at_;
      while (end < source_.size() && (begins_name(source_[end]) || is_digit(source_[end]))) ++end;
      add(Token::Kind::kName, source_.substr(at_, end - at_));
      move_to(end);
    } else {
      for (const std::string_view operation :
           {"**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<",
            ">",  "=",  "(",  ")",  "[",  "]",  "{", "}", ",", ":", ".", "|"}) {
        if (!has(operation)) continue;
        add(Token::Kind::kOperator, std::string(operation));
        move_to(at_ + operation.size());
        if (c == '(' || c == '[' || c == '{') return depth + 1;
        return c == ')' || c == ']' || c == '}' ? depth - 1 : depth;
      }
      refuse(fmt::format("'{}' is not understood", c));
    }
    return depth;
  }

  void read_number() {
    size_t end = at_;
    bool is_float = false;
    const auto digit_at = [&](size_t place) {
      return place < source_.size() && is_digit(source_[place]);
    };
    std::string digits;
    while (end < source_.size()) {
      const char c = source_[end];
      if (is_digit(c)) {
        digits += c;
      } else if (c == '.' && !is_float && digit_at(end + 1)) {
        is_float = true;
        digits += c;
      } else if ((c == 'e' || c == 'E') &&
                 (digit_at(end + 1) ||
                  (end + 1 < source_.size() &&
                   (source_[end + 1] == '-' || source_[end + 1] == '+') && digit_at(end + 2)))) {
        is_float = true;
        digits += c;
        digits += source_[++end];
      } else if (!(c == '_' && digit_at(end + 1))) {
        break;
      }
      ++end;
    }
    if (!is_float && digits.size() > 18) refuse("a number is too large");
    const Value value =
        is_float ? Value(std::strtod(digits.c_str(), nullptr))
                 : Value(static_cast<int64_t>(std::strtoll(digits.c_str(), nullptr, 10)));
    add(Token::Kind::kNumber, digits, value);
    move_to(end);
  }

  void read_string(char quote) {
    std::string text;
    size_t i = at_ + 1;
    for (; i < source_.size() && source_[i] != quote; ++i) {
      if (source_[i] != '\\' || i + 1 >= source_.size()) {
        text += source_[i];
        continue;
      }
      i = read_escape(i + 1, text);
    }
    if (i >= source_.size()) refuse("a string has no end");
    add(Token::Kind::kString, std::move(text));
    move_to(i + 1);
  }

  // source_[i] follows a backslash. Returns where the escape's last character stands.
  size_t read_escape(size_t i, std::string& text) const {
    const char c = source_[i];
    constexpr std::string_view kNames = "ntrabfv\\'\"", kMeant = "\n\t\r\a\b\f\v\\'\"";
    if (const size_t place = kNames.find(c); place != std::string_view::npos) {
      text += kMeant[place];
    } else if (c == '\n') {
      // An escaped line break is nothing.
    } else if (const size_t num_digits = c == 'x'   ? 2
                                         : c == 'u' ? 4
                                         : c == 'U' ? 8
                                                    : 0;
               num_digits > 0 && i + num_digits < source_.size()) {
      const std::string digits = source_.substr(i + 1, num_digits);
      if (digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos)
        refuse("a broken escape");
      append_code_point(text, static_cast<uint32_t>(std::strtoul(digits.c_str(), nullptr, 16)));
      return i + num_digits;
    } else {
      text += '\\';
      text += c;
    }
    return i;
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize_template(std::string_view source) { return Lexer(source).run(); }

}  // namespace pelago::serve
