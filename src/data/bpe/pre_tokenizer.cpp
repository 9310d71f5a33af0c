#include "data/bpe/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace pelago::data {

namespace {

enum Class : uint8_t { kOther, kLetter, kDigit, kNewline, kSpace, kBlank, kHigh, kEnd };

constexpr std::array<Class, 256> make_classes() {
  std::array<Class, 256> classes{};
  for (size_t c = 0; c < 256; ++c) {
    classes[c] = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ? kLetter
                 : c >= '0' && c <= '9'                           ? kDigit
                 : c == '\r' || c == '\n'                         ? kNewline
                 : c == ' '                                       ? kSpace
                 : c == '\t' || c == '\v' || c == '\f'            ? kBlank
                 : c >= 0x80                                      ? kHigh
                                                                  : kOther;
  }
  return classes;
}

constexpr std::array<Class, 256> kClasses = make_classes();

/// The hand-written path of kLlama3Pattern and kQwen2Pattern. Where a byte of 0x80 or more could
/// change the answer, end_of() returns kUndecided.
class AsciiPath {
 public:
  static constexpr size_t kUndecided = 0;

  AsciiPath(std::string_view text, size_t digits_max) : text_(text), digits_max_(digits_max) {}

  /// The end of the piece that begins at begin < text.size().
  size_t end_of(size_t begin) const {
    const Class first = class_at(begin);
    const Class second = class_at(begin + 1);
    if (first == kHigh) return kUndecided;
    if (first == kLetter) return end_of_run(begin + 1, kLetter);
    if (first == kDigit) return end_of_number(begin);
    if (first != kNewline) {
      if (second == kHigh) return kUndecided;
      if (text_[begin] == '\'') {
        if (const size_t end = end_of_contraction(begin)) return end;
      }
      if (second == kLetter) return end_of_run(begin + 2, kLetter);
      if (first == kOther || (first == kSpace && second == kOther)) {
        size_t end = end_of_run(begin + 1, kOther);
        if (end == kUndecided) return end;
        while (class_at(end) == kNewline) ++end;
        return end;
      }
    }
    return end_of_white_space(begin);
  }

 private:
  Class class_at(size_t idx) const {
    return idx < text_.size() ? kClasses[static_cast<uint8_t>(text_[idx])] : kEnd;
  }

  size_t end_of_run(size_t end, Class wanted) const {
    while (class_at(end) == wanted) ++end;
    return class_at(end) == kHigh ? kUndecided : end;
  }

  size_t end_of_number(size_t begin) const {
    size_t end = begin + 1;
    while (end - begin < digits_max_ && class_at(end) == kDigit) ++end;
    return end - begin < digits_max_ && class_at(end) == kHigh ? kUndecided : end;
  }

  // 's 't 'm 'd 're 've 'll, in either case; 0 if none.
  size_t end_of_contraction(size_t begin) const {
    const auto lower = [&](size_t idx) {
      return idx < text_.size() ? static_cast<char>(text_[idx] | 0x20) : '\0';
    };
    const char a = lower(begin + 1);
    const char b = lower(begin + 2);
    if (class_at(begin + 1) != kLetter) return 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return begin + 2;
    if (class_at(begin + 2) != kLetter) return 0;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) {
      return begin + 3;
    }
    return 0;
  }

  // \s*[\r\n]+ ends after the last line break of the run; else \s+(?!\S) leaves the last blank to
  // the word that follows.
  size_t end_of_white_space(size_t begin) const {
    size_t end = begin;
    size_t after_newline = 0;
    for (;; ++end) {
      const Class c = class_at(end);
      if (c == kNewline) {
        after_newline = end + 1;
      } else if (c != kSpace && c != kBlank) {
        break;
      }
    }
    if (class_at(end) == kHigh) return kUndecided;
    if (after_newline != 0) return after_newline;
    return class_at(end) == kEnd || end - begin == 1 ? end : end - 1;
  }

  std::string_view text_;
  size_t digits_max_;
};

// Bytes of the valid character that text begins with; 0 if it begins with none.
size_t utf8_character_bytes(std::string_view text) {
  const auto byte = [&](size_t idx) -> uint32_t {
    return idx < text.size() ? static_cast<uint8_t>(text[idx]) : 0;
  };
  const auto continues = [&](size_t idx) { return (byte(idx) & 0xC0) == 0x80; };
  if (text.empty()) return 0;
  const uint32_t first = byte(0);
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4 || !continues(1)) return 0;
  if (first < 0xE0) return 2;
  if (!continues(2)) return 0;
  if (first < 0xF0) {
    const bool overlong = first == 0xE0 && byte(1) < 0xA0;
    const bool surrogate = first == 0xED && byte(1) >= 0xA0;
    return overlong || surrogate ? 0 : 3;
  }
  const bool overlong = first == 0xF0 && byte(1) < 0x90;
  const bool too_large = first == 0xF4 && byte(1) >= 0x90;
  return !continues(3) || overlong || too_large ? 0 : 4;
}

}  // namespace

size_t valid_utf8_prefix_bytes(std::string_view text) {
  size_t valid = 0;
  while (valid < text.size()) {
    uint64_t word = 0;
    while (valid + sizeof word <= text.size()) {
      std::memcpy(&word, text.data() + valid, sizeof word);
      if ((word & 0x8080808080808080ULL) != 0) break;
      valid += sizeof word;
    }
    const size_t num_bytes = utf8_character_bytes(text.substr(valid));
    if (num_bytes == 0) break;
    valid += num_bytes;
  }
  return valid;
}

struct PreTokenizer::Pattern {
  std::string text;
  size_t digits_max = 0;  // of the ASCII path; 0: this pattern has none
  pcre2_code* code = nullptr;

  Pattern(const std::string& pattern, Options options) : text(pattern) {
    if (options.use_fast_path && pattern == kLlama3Pattern) digits_max = 3;
    if (options.use_fast_path && pattern == kQwen2Pattern) digits_max = 1;
    int error = 0;
    PCRE2_SIZE offset = 0;
    code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()),
                         pattern.size(),
                         PCRE2_UTF | PCRE2_UCP,
                         &error,
                         &offset,
                         nullptr);
    if (code == nullptr) {
      std::array<char, 200> message{};
      pcre2_get_error_message(
          error, reinterpret_cast<PCRE2_UCHAR*>(message.data()), message.size());
      fail("pre-tokenizer pattern {}: {} at character {}", pattern, message.data(), offset);
    }
    // Where the system forbids writable code this fails, and PCRE2 interprets: slower, same answer.
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  }
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;
  ~Pattern() { pcre2_code_free(code); }
};

PreTokenizer::PreTokenizer(const std::vector<std::string>& patterns, Options options) {
  for (const std::string& pattern : patterns) {
    patterns_.push_back(std::make_unique<const Pattern>(pattern, options));
  }
}
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

/// One pattern's walk over one subject.
class PieceCursor::Level {
 public:
  explicit Level(const PreTokenizer::Pattern& pattern)
      : pattern_(&pattern),
        match_(pcre2_match_data_create(1, nullptr), &pcre2_match_data_free),
        limits_(pcre2_match_context_create(nullptr), &pcre2_match_context_free) {
    // The default limits stop a match after 10 million steps, which 10 MB of blanks need.
    pcre2_set_match_limit(limits_.get(), UINT32_MAX);
    pcre2_set_heap_limit(limits_.get(), UINT32_MAX);
  }

  void start(std::string_view text) {
    text_ = text;
    begin_ = stretch_begin_ = stretch_end_ = 0;
  }

  bool next(std::string_view& piece) {
    if (begin_ == text_.size()) return false;
    size_t end = AsciiPath::kUndecided;
    if (pattern_->digits_max != 0) end = AsciiPath(text_, pattern_->digits_max).end_of(begin_);
    if (end == AsciiPath::kUndecided) end = regex_end();
    piece = text_.substr(begin_, end - begin_);
    begin_ = end;
    return true;
  }

 private:
  // PCRE2 sees one stretch of valid UTF-8 at a time. Were it to check validity itself, it would do
  // so from the start of the match to the end of the text at every match: quadratic.
  size_t regex_end() {
    if (begin_ >= stretch_end_) {
      stretch_begin_ = begin_;
      stretch_end_ = begin_ + valid_utf8_prefix_bytes(text_.substr(begin_));
    }
    if (begin_ == stretch_end_) {
      size_t end = begin_ + 1;
      while (end < text_.size() && utf8_character_bytes(text_.substr(end, 4)) == 0) ++end;
      return end;
    }
    int found = match(0);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = match(PCRE2_NO_JIT);
    if (found == PCRE2_ERROR_NOMATCH) return stretch_end_;
    if (found < 0) fail("pre-tokenizer pattern {}: PCRE2 error {}", pattern_->text, found);
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match_.get());
    const size_t match_begin = stretch_begin_ + range[0];
    return match_begin > begin_ ? match_begin : stretch_begin_ + range[1];
  }

  int match(uint32_t more_options) {
    return pcre2_match(pattern_->code,
                       reinterpret_cast<PCRE2_SPTR>(text_.data() + stretch_begin_),
                       stretch_end_ - stretch_begin_,
                       begin_ - stretch_begin_,
                       PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY | more_options,
                       match_.get(),
                       limits_.get());
  }

  const PreTokenizer::Pattern* pattern_;  // the PreTokenizer's; outlives me
  std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match_;
  std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> limits_;
  std::string_view text_;
  size_t begin_ = 0;
  size_t stretch_begin_ = 0;  // [stretch_begin_, stretch_end_) is valid UTF-8
  size_t stretch_end_ = 0;
};

PieceCursor::PieceCursor(const PreTokenizer& pre_tokenizer) {
  for (const auto& pattern : pre_tokenizer.patterns_) levels_.emplace_back(*pattern);
}
PieceCursor::PieceCursor(PieceCursor&&) noexcept = default;
PieceCursor::~PieceCursor() = default;

void PieceCursor::start(std::string_view text) {
  whole_ = levels_.empty() ? text : std::string_view();
  for (Level& level : levels_) level.start({});
  if (!levels_.empty()) levels_.front().start(text);
}

bool PieceCursor::next(std::string_view& piece) {
  if (levels_.empty()) {
    piece = std::exchange(whole_, std::string_view());
    return !piece.empty();
  }
  size_t depth = levels_.size() - 1;
  while (true) {
    if (levels_[depth].next(piece)) {
      if (depth + 1 == levels_.size()) return true;
      levels_[++depth].start(piece);
    } else if (depth-- == 0) {
      return false;
    }
  }
}

}  // namespace pelago::data
