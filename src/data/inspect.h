// What a dataset folder holds, for `pelago data inspect`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace pelago::data {

struct SplitSummary {
  std::string name;
  int64_t num_documents = 0;
  int64_t num_tokens = 0;
  int64_t num_text_bytes = 0;
  int64_t num_shards = 0;
  double bytes_per_token = 0.0;  // end-of-text tokens not counted
};

struct TokenCount {
  TokenId token = 0;
  std::string text;  // on one line: escapes for what does not print
  int64_t count = 0;
};

struct DatasetSummary {
  std::string dataset_hash;
  std::string tokenizer_hash;
  int64_t vocab_size = 0;
  int64_t num_tokens_used = 0;  // that occur at least once in the train split
  bool hashes_verified = false;
  std::vector<SplitSummary> splits;
  std::vector<TokenCount> most_frequent;  // of the train split, the most frequent first
  std::string sample;                     // decoded from the start of the train split
};

struct InspectOptions {
  bool verify = true;  // hash every shard
  int num_most_frequent = 20;
  int sample_tokens = 128;
};

/// Throws Failure naming what is missing, truncated, corrupt or of another tokenizer.
DatasetSummary inspect_dataset(const std::filesystem::path& dataset_dir,
                               const InspectOptions& options = {});

/// Bytes on one line: \n, \t, \\ and \xNN for what is not printable UTF-8.
std::string escaped(std::string_view bytes);

}  // namespace pelago::data
