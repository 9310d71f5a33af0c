// A shard: a header of 64 bytes, then tokens, little-endian. docs/FILES.md has the table.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "base/files.h"
#include "data/tokenizer.h"

namespace pelago::data {

inline constexpr size_t kShardHeaderBytes = 64;
inline constexpr uint32_t kShardVersion = 1;

/// 2 bytes if every id fits, else 4.
int token_bytes_for(int64_t vocab_size);

/// What a shard must say to be the one that dataset.json lists.
struct ShardExpectation {
  int64_t num_tokens = 0;
  int64_t vocab_size = 0;
  std::string tokenizer_hash;
  std::string hash;  // of the whole file
};

/// Collects tokens and writes them as one shard file.
class ShardWriter {
 public:
  ShardWriter(int64_t vocab_size, const std::string& tokenizer_hash);
  void add(std::span<const TokenId> tokens);
  int64_t num_tokens() const { return num_tokens_; }
  /// Writes the file and starts anew. Returns the file's hash. Throws Failure.
  std::string finish(const std::filesystem::path& path);

 private:
  void start();

  int64_t vocab_size_;
  std::string tokenizer_hash_;
  std::string content_;
  int64_t num_tokens_ = 0;
};

/// One shard, mapped and checked.
class Shard {
 public:
  /// verify: hash the whole file. Throws Failure naming the file that is missing, truncated,
  /// corrupt or made with another tokenizer.
  Shard(const std::filesystem::path& path, const ShardExpectation& expected, bool verify);

  int64_t num_tokens() const { return num_tokens_; }
  /// Copies tokens [begin, begin + out.size()), which lie inside the shard. Throws Failure if one
  /// is not in the vocabulary.
  void read(int64_t begin, std::span<int64_t> out) const;

 private:
  std::filesystem::path path_;
  MappedFile file_;
  int64_t num_tokens_ = 0;
  int64_t vocab_size_ = 0;
  int token_bytes_ = 0;
};

}  // namespace pelago::data
