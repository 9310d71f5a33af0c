// Cuts text into pieces that BPE never merges across, by the regular expressions of
// tokenizer.json. Pieces are consecutive and together are the text, whatever bytes it holds: what
// no pattern matches, and runs of bytes that are not UTF-8, are pieces of their own.
//
// Two patterns that most open models share have a hand-written path for ASCII, eight times faster
// than PCRE2's compiled code. It answers only where the next character cannot change the answer
// and leaves the rest to PCRE2; a property test holds the two together.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace pelago::data {

/// Llama 3's pattern; what pelago trains with. Numbers go in groups of three digits.
inline constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
/// Qwen 2's and Qwen 3's: every digit for itself.
inline constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
/// GPT-2's: what ByteLevel means by use_regex.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

class PreTokenizer {
 public:
  struct Options {
    bool use_fast_path = true;  // off only to compare the two
  };

  /// patterns: applied one after another, each to the pieces of the one before; none makes all
  /// text one piece. Throws Failure naming the pattern and the place in it that PCRE2 does not
  /// accept.
  PreTokenizer(const std::vector<std::string>& patterns, Options options);
  explicit PreTokenizer(const std::vector<std::string>& patterns)
      : PreTokenizer(patterns, Options{}) {}
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

 private:
  friend class PieceCursor;
  struct Pattern;
  std::vector<std::unique_ptr<const Pattern>> patterns_;
};

/// Walks over the pieces of one text after another. One thread's; many may share a PreTokenizer.
class PieceCursor {
 public:
  /// pre_tokenizer outlives the cursor, and its address may change (it is not kept).
  explicit PieceCursor(const PreTokenizer& pre_tokenizer);
  PieceCursor(PieceCursor&&) noexcept;
  ~PieceCursor();

  /// text outlives the walk.
  void start(std::string_view text);
  /// False at the end. piece is a view into the text, never empty.
  bool next(std::string_view& piece);

 private:
  class Level;
  std::vector<Level> levels_;
  std::string_view whole_;  // what is left if there is no pattern
};

/// The number of bytes at the start of text that are UTF-8 (RFC 3629).
size_t valid_utf8_prefix_bytes(std::string_view text);

}  // namespace pelago::data
