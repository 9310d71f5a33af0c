// One split of a dataset on its way to disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "data/shards/dataset_index.h"
#include "data/shards/shard.h"
#include "data/tokenizer.h"

namespace pelago::data {

/// Writes NAME-00000.bin and so on, each of shard_tokens tokens but the last.
class SplitWriter {
 public:
  SplitWriter(std::filesystem::path folder,
              const std::string& name,
              const Tokenizer& tokenizer,
              int64_t shard_tokens);

  /// One document; the end-of-text token is added here.
  void add(std::vector<TokenId> tokens, int64_t text_bytes);
  /// Call once, last. A split without documents has no shard.
  SplitEntry finish();

 private:
  void close_shard();

  std::filesystem::path folder_;
  TokenId end_of_text_;
  int64_t shard_tokens_;
  ShardWriter writer_;
  SplitEntry entry_;
};

/// A folder beside `out` that takes its name, or vanishes.
class PendingFolder {
 public:
  /// Throws Failure (exit 2) if out exists, unless it is an empty folder or, with `replace`, a
  /// dataset.
  PendingFolder(const std::filesystem::path& out, bool replace);
  PendingFolder(const PendingFolder&) = delete;
  PendingFolder& operator=(const PendingFolder&) = delete;
  ~PendingFolder();

  const std::filesystem::path& path() const { return path_; }
  /// Forces the folder to disk and gives it its name.
  void commit();

 private:
  std::filesystem::path out_;
  std::filesystem::path path_;
};

}  // namespace pelago::data
