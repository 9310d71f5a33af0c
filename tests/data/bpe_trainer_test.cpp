#include "data/bpe_trainer.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>

#include "base/error.h"
#include "data/bpe/byte_alphabet.h"
#include "data/test_text.h"

namespace pelago::data {
namespace {

/// BPE training as the paper tells it (arXiv:1508.07909), recounting every pair at every merge.
std::vector<std::string> learn_plainly(const WordCounts& counts, size_t num_merges) {
  std::vector<std::string> tokens;
  for (const uint8_t byte : bytes_in_alphabet_order()) tokens.emplace_back(1, char(byte));
  std::vector<std::pair<std::vector<int>, int64_t>> words;
  for (const auto& [text, count] : counts.sorted()) {
    words.emplace_back();
    words.back().second = count;
    for (const char c : text) {
      const auto at = std::find(tokens.begin(), tokens.end(), std::string(1, c));
      words.back().first.push_back(static_cast<int>(at - tokens.begin()));
    }
  }
  std::vector<std::string> learned;
  while (learned.size() < num_merges) {
    std::map<std::pair<int, int>, int64_t> pairs;
    for (const auto& [ids, count] : words) {
      for (size_t i = 0; i + 1 < ids.size(); ++i) pairs[{ids[i], ids[i + 1]}] += count;
    }
    const auto best =
        std::max_element(pairs.begin(), pairs.end(), [](const auto& a, const auto& b) {
          return a.second != b.second ? a.second < b.second : a.first > b.first;
        });
    if (best == pairs.end() || best->second < 2) break;
    const auto [left, right] = best->first;
    const int result = static_cast<int>(tokens.size());
    tokens.push_back(tokens[size_t(left)] + tokens[size_t(right)]);
    learned.push_back(tokens.back());
    for (auto& [ids, count] : words) {
      std::vector<int> merged;
      for (size_t i = 0; i < ids.size(); ++i) {
        const bool here = i + 1 < ids.size() && ids[i] == left && ids[i + 1] == right;
        merged.push_back(here ? result : ids[i]);
        if (here) ++i;
      }
      ids = merged;
    }
  }
  return learned;
}

WordCounts count_words(std::string_view text) {
  const PreTokenizer pre_tokenizer({std::string(kLlama3Pattern)});
  PieceCursor cursor(pre_tokenizer);
  WordCounts counts;
  counts.add_text(cursor, text);
  return counts;
}

TEST_CASE("the trainer learns what recounting every pair learns") {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    std::string text = code_like_text(seed, /*num_bytes=*/3000);
    text += "aaaaaaaaa aaaa aaa abababab aabaab banana bananas";  // pairs that overlap themselves
    const WordCounts counts = count_words(text);
    const TokenizerSpec spec = train_bpe(counts, {.vocab_size = 257 + 120});
    std::vector<std::string> learned;
    for (const Merge& merge : spec.merges) {
      learned.push_back(spec.token_bytes[static_cast<size_t>(merge.result)]);
    }
    CHECK(learned == learn_plainly(counts, 120));
  }
}

TEST_CASE("the vocabulary does not depend on the number of threads") {
  std::vector<std::string> texts;
  for (uint64_t seed = 1; seed <= 40; ++seed) texts.push_back(code_like_text(seed, 500));
  const std::vector<std::string_view> documents(texts.begin(), texts.end());
  const std::string alone = hash_of(train_bpe(documents, {.vocab_size = 500}));
  for (const int num_threads : {2, 3, 7}) {
    CHECK(hash_of(train_bpe(documents, {.vocab_size = 500, .num_threads = num_threads})) == alone);
  }
}

TEST_CASE("a corpus with little in it yields a smaller vocabulary") {
  const TokenizerSpec spec = train_bpe(count_words("ab ab"), {.vocab_size = 8192});
  CHECK(spec.merges.size() == 1);  // "ab"; " ab" occurs once
  CHECK(spec.token_bytes.size() == 258);
}

TEST_CASE("a vocabulary too small for all bytes is refused with the range") {
  CHECK_THROWS_WITH_AS(train_bpe(WordCounts(), {.vocab_size = 256}),
                       "vocab_size = 256 must be 257 (all bytes and the special tokens) to 1048576",
                       Failure);
}

TEST_CASE("training ends when it is told to stop") {
  std::stop_source source;
  source.request_stop();
  CHECK_THROWS_AS(train_bpe(count_words("ab ab"), {.stop = source.get_token()}), Failure);
}

}  // namespace
}  // namespace pelago::data
