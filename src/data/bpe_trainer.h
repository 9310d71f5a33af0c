// Learns a byte-level BPE vocabulary. Text is cut into pieces and the distinct pieces are counted;
// then the most frequent pair of neighbouring tokens becomes a token, over and over. A heap holds
// the pairs with counts that may be out of date (they are mended when they come up), and each pair
// knows the words it may stand in, so that a merge touches only those. Counts are sums and ties go
// to the smaller ids: the result does not depend on the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "data/bpe/pre_tokenizer.h"
#include "data/bpe/tokenizer_spec.h"

namespace pelago::data {

struct BpeTrainOptions {
  int64_t vocab_size = 8192;  // 256 bytes, the merges and the special tokens
  std::vector<std::string> special_tokens = {"<|endoftext|>"};
  std::vector<std::string> patterns = {std::string(kLlama3Pattern)};
  int num_threads = 1;
  std::stop_token stop = {};  // a stop is a Failure

  /// Throws Failure (exit 2) naming the field, its value and the allowed range.
  void validate() const;
};

/// How often each distinct piece occurs.
class WordCounts {
 public:
  void add_text(PieceCursor& cursor, std::string_view text);
  void add_all(const WordCounts& other);
  /// By bytes, so that the order does not depend on who counted what.
  std::vector<std::pair<std::string_view, int64_t>> sorted() const;

 private:
  void add_word(std::string_view word, int64_t count);

  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view word) const;
  };
  std::unordered_map<std::string, int64_t, Hash, std::equal_to<>> counts_;
};

/// The vocabulary may come out smaller than asked for: a pair that occurs once is not merged.
/// Throws Failure if it is told to stop.
TokenizerSpec train_bpe(const WordCounts& words, const BpeTrainOptions& options);

/// Counts and trains. Each thread takes whole documents.
TokenizerSpec train_bpe(std::span<const std::string_view> documents,
                        const BpeTrainOptions& options);

}  // namespace pelago::data
