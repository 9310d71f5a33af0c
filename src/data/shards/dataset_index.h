// dataset.json: what a dataset folder holds.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace pelago::data {

struct ShardEntry {
  std::string file;  // a name inside the folder
  int64_t num_tokens = 0;
  std::string hash;  // XXH3 of the whole file, 32 hex digits
};

struct SplitEntry {
  std::string name;  // "train" or "heldout"
  int64_t num_documents = 0;
  int64_t num_tokens = 0;      // end-of-text tokens counted
  int64_t num_text_bytes = 0;  // end-of-text tokens not counted
  std::vector<ShardEntry> shards;
};

struct DatasetIndex {
  std::string tokenizer_hash;
  int64_t vocab_size = 0;
  std::vector<SplitEntry> splits;
  std::string heldout_text_hash;  // of heldout.txt

  /// Throws Failure naming the folder or the part of dataset.json that is missing or wrong.
  static DatasetIndex read(const std::filesystem::path& dataset_dir);
  std::string to_json() const;
  /// Of the shards' hashes and the tokenizer's; changes with any token.
  std::string dataset_hash() const;
  /// Throws Failure if there is no such split.
  const SplitEntry& split(const std::string& name, const std::filesystem::path& dataset_dir) const;
};

}  // namespace pelago::data
