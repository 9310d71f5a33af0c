// A built corpus: a folder with dataset.json, tokenizer.json, tokenizer_config.json and token
// shards train-00000.bin ... and heldout-00000.bin. Formats: docs/FILES.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/files.h"

namespace pelago::data {

/// One split of a dataset as one long stream of tokens, documents separated by end-of-text.
/// Memory-mapped.
class TokenStream {
 public:
  /// split: "train" or "heldout". verify: hash every shard against dataset.json (slow on large
  /// corpora). Throws Failure naming the shard that is missing, truncated, corrupt, or made with
  /// another tokenizer.
  TokenStream(const std::filesystem::path& dataset_dir, const std::string& split, bool verify);
  TokenStream(TokenStream&&) noexcept;
  ~TokenStream();

  int64_t num_tokens() const;
  int64_t vocab_size() const;
  /// Bytes of text behind the stream, separators not counted: for bits per byte.
  int64_t num_text_bytes() const;
  const std::string& tokenizer_hash() const;
  /// Hash of the whole dataset (the shards' hashes and the tokenizer's), 32 hex digits.
  const std::string& dataset_hash() const;
  /// Copies tokens [begin, begin + out.size()) into out. The range lies inside the stream.
  void read(int64_t begin, std::span<int64_t> out) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Which sequence the run's sample `sample_idx` is: a keyed permutation of [0, num_sequences) a
/// pass (4-round Feistel over the next power of two, walking cycles), a new key each pass. Any
/// sample can be found without the ones before it.
class SampleOrder {
 public:
  SampleOrder(int64_t num_sequences, uint64_t seed);
  /// sample_idx >= 0, without upper bound. Returns the sequence, in [0, num_sequences).
  int64_t sequence_of(int64_t sample_idx) const;

 private:
  int64_t num_sequences_;
  uint64_t seed_;
};

}  // namespace pelago::data
