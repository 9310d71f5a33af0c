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

/// Throws Failure (exit 2) if `out` exists, unless it is an empty folder or, with `replace`, a
/// dataset.
void refuse_taken_folder(const std::filesystem::path& out, bool replace);

}  // namespace pelago::data
