#include "data/bpe_trainer.h"

#include <algorithm>
#include <array>
#include <optional>
#include <queue>
#include <tuple>

#include "base/error.h"
#include "base/files.h"
#include "data/bpe/byte_alphabet.h"
#include "data/bpe/pair_map.h"
#include "data/corpus/parallel.h"

namespace pelago::data {

namespace {

// A merge walks whole words, so one word of a megabyte would cost as much as a corpus at each of
// thousands of merges. Longer pieces are counted in parts; natural words never come near.
constexpr size_t kWordBytesMax = 1024;

class BpeTrainer {
 public:
  BpeTrainer(const WordCounts& counts, const BpeTrainOptions& options) : options_(options) {
    std::array<TokenId, 256> id_of_byte{};
    for (const uint8_t byte : bytes_in_alphabet_order()) {
      id_of_byte[byte] = static_cast<TokenId>(spec_.token_bytes.size());
      spec_.token_bytes.emplace_back(1, static_cast<char>(byte));
    }
    for (const auto& [text, count] : counts.sorted()) {
      if (text.size() < 2) continue;  // nothing to merge
      words_.push_back({.begin = ids_.size(), .num_ids = text.size(), .count = count});
      for (const char byte : text) ids_.push_back(id_of_byte[static_cast<uint8_t>(byte)]);
    }
  }

  TokenizerSpec train() {
    count_all_pairs();
    const auto num_specials = static_cast<int64_t>(options_.special_tokens.size());
    const auto num_learned_max = static_cast<size_t>(options_.vocab_size - num_specials);
    while (spec_.token_bytes.size() < num_learned_max) {
      if (options_.stop.stop_requested()) {
        throw Failure("stopped while the tokenizer was being trained; nothing was written",
                      kExitInterrupted);
      }
      const auto best = take_best();
      if (!best) break;
      merge_everywhere(*best);
    }
    for (const std::string& content : options_.special_tokens) {
      const auto id = static_cast<TokenId>(spec_.token_bytes.size());
      spec_.token_bytes.emplace_back();
      spec_.added.push_back({.id = id, .content = content, .special = true});
    }
    spec_.patterns = options_.patterns;
    return std::move(spec_);
  }

 private:
  struct Word {
    size_t begin = 0;  // in ids_
    size_t num_ids = 0;
    int64_t count = 0;
  };

  struct Pair {
    TokenId left = 0;
    TokenId right = 0;
    int64_t count = 0;
    std::vector<uint32_t> word_idxs;  // ascending; a word may have lost the pair since
  };

  struct Candidate {
    int64_t count;  // may be out of date, but never too low
    TokenId left;
    TokenId right;
    uint32_t pair_idx;
    bool operator<(const Candidate& other) const {
      return std::tie(count, other.left, other.right) < std::tie(other.count, left, right);
    }
  };

  std::span<TokenId> ids_of(const Word& word) {
    return std::span(ids_).subspan(word.begin, word.num_ids);
  }

  void count_pair(TokenId left, TokenId right, int64_t count, uint32_t word_idx) {
    const auto next_idx = static_cast<uint32_t>(pairs_.size());
    const uint32_t pair_idx = pair_idxs_.insert(pair_key(left, right), next_idx);
    if (pair_idx == next_idx) pairs_.push_back({.left = left, .right = right, .word_idxs = {}});
    Pair& pair = pairs_[pair_idx];
    pair.count += count;
    if (pair.word_idxs.empty() || pair.word_idxs.back() != word_idx) {
      pair.word_idxs.push_back(word_idx);
    }
  }

  void uncount_pair(TokenId left, TokenId right, int64_t count) {
    const uint32_t* pair_idx = pair_idxs_.find(pair_key(left, right));
    PELAGO_ASSERT(pair_idx != nullptr, "a pair that stands in a word was counted");
    pairs_[*pair_idx].count -= count;
  }

  void count_all_pairs() {
    for (size_t word_idx = 0; word_idx < words_.size(); ++word_idx) {
      const auto ids = ids_of(words_[word_idx]);
      for (size_t i = 0; i + 1 < ids.size(); ++i) {
        count_pair(ids[i], ids[i + 1], words_[word_idx].count, static_cast<uint32_t>(word_idx));
      }
    }
    offer_pairs_from(0);
  }

  void offer_pairs_from(size_t first_idx) {
    for (size_t idx = first_idx; idx < pairs_.size(); ++idx) {
      const Pair& pair = pairs_[idx];
      candidates_.push({pair.count, pair.left, pair.right, static_cast<uint32_t>(idx)});
    }
  }

  // Counts only fall once a pair is offered (a merge adds only pairs with its new token), so the
  // first candidate whose count is right is the best of all.
  std::optional<uint32_t> take_best() {
    while (!candidates_.empty()) {
      Candidate best = candidates_.top();
      candidates_.pop();
      const int64_t count_now = pairs_[best.pair_idx].count;
      if (count_now < 2) continue;
      if (count_now == best.count) return best.pair_idx;
      best.count = count_now;
      candidates_.push(best);
    }
    return std::nullopt;
  }

  void merge_everywhere(uint32_t pair_idx) {
    const TokenId left = pairs_[pair_idx].left;
    const TokenId right = pairs_[pair_idx].right;
    const auto result = static_cast<TokenId>(spec_.token_bytes.size());
    const auto bytes_of = [&](TokenId id) { return spec_.token_bytes[static_cast<size_t>(id)]; };
    spec_.token_bytes.push_back(bytes_of(left) + bytes_of(right));
    spec_.merges.push_back({.left = left, .right = right, .result = result});
    const std::vector<uint32_t> word_idxs = std::move(pairs_[pair_idx].word_idxs);
    const size_t first_new_pair = pairs_.size();
    for (const uint32_t word_idx : word_idxs) {
      merge_in_word(word_idx, {.left = left, .right = right, .result = result});
    }
    pairs_[pair_idx].count = 0;
    offer_pairs_from(first_new_pair);
  }

  // Rewrites the word in place, left to right. ids[num_kept - 1] is the token before the read
  // position as it stands now, merged or not.
  void merge_in_word(uint32_t word_idx, const Merge& merge) {
    Word& word = words_[word_idx];
    const auto ids = ids_of(word);
    size_t num_kept = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      const bool here = i + 1 < ids.size() && ids[i] == merge.left && ids[i + 1] == merge.right;
      if (!here) {
        ids[num_kept++] = ids[i];
        continue;
      }
      if (num_kept > 0) {
        uncount_pair(ids[num_kept - 1], merge.left, word.count);
        count_pair(ids[num_kept - 1], merge.result, word.count, word_idx);
      }
      if (i + 2 < ids.size()) {
        uncount_pair(merge.right, ids[i + 2], word.count);
        count_pair(merge.result, ids[i + 2], word.count, word_idx);
      }
      ids[num_kept++] = merge.result;
      ++i;
    }
    word.num_ids = num_kept;
  }

  const BpeTrainOptions& options_;  // outlives me
  TokenizerSpec spec_;
  std::vector<TokenId> ids_;  // of all words, one after another
  std::vector<Word> words_;
  std::vector<Pair> pairs_;
  PairMap<uint32_t> pair_idxs_;
  std::priority_queue<Candidate> candidates_;
};

}  // namespace

void BpeTrainOptions::validate() const {
  const int64_t num_fixed = 256 + static_cast<int64_t>(special_tokens.size());
  if (vocab_size < num_fixed || vocab_size > (1 << 20)) {
    fail_usage("vocab_size = {} must be {} (all bytes and the special tokens) to {}",
               vocab_size,
               num_fixed,
               1 << 20);
  }
  if (num_threads < 1) fail_usage("num_threads = {} must be at least 1", num_threads);
}

size_t WordCounts::Hash::operator()(std::string_view word) const { return hash_u64(word); }

void WordCounts::add_word(std::string_view word, int64_t count) {
  const auto found = counts_.find(word);
  if (found != counts_.end()) {
    found->second += count;
  } else {
    counts_.emplace(word, count);
  }
}

void WordCounts::add_text(PieceCursor& cursor, std::string_view text) {
  cursor.start(text);
  for (std::string_view piece; cursor.next(piece);) {
    for (; piece.size() > kWordBytesMax; piece.remove_prefix(kWordBytesMax)) {
      add_word(piece.substr(0, kWordBytesMax), 1);
    }
    add_word(piece, 1);
  }
}

void WordCounts::add_all(const WordCounts& other) {
  for (const auto& [word, count] : other.counts_) add_word(word, count);
}

std::vector<std::pair<std::string_view, int64_t>> WordCounts::sorted() const {
  std::vector<std::pair<std::string_view, int64_t>> words(counts_.begin(), counts_.end());
  std::sort(words.begin(), words.end());
  return words;
}

TokenizerSpec train_bpe(const WordCounts& words, const BpeTrainOptions& options) {
  options.validate();
  return BpeTrainer(words, options).train();
}

TokenizerSpec train_bpe(std::span<const std::string_view> documents,
                        const BpeTrainOptions& options) {
  options.validate();
  const PreTokenizer pre_tokenizer(options.patterns);
  std::vector<WordCounts> counts(static_cast<size_t>(options.num_threads));
  for_each_in_parallel(documents.size(), options.num_threads, [&](size_t idx, size_t thread_idx) {
    PieceCursor cursor(pre_tokenizer);
    counts[thread_idx].add_text(cursor, documents[idx]);
  });
  for (size_t i = 1; i < counts.size(); ++i) counts[0].add_all(counts[i]);
  return train_bpe(counts[0], options);
}

}  // namespace pelago::data
