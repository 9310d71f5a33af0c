// Makes a dataset folder from text: tokenizer, token shards, index and the raw held-out text.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <stop_token>
#include <string>
#include <vector>

#include "base/threads.h"
#include "data/corpus/sources.h"  // split_globs, for whoever parses the options

namespace pelago::data {

struct BuildOptions {
  std::vector<std::filesystem::path> from;  // files and folders; *.jsonl holds a document a line
  bool from_stdin = false;                  // standard input, one document, besides `from`
  std::vector<std::string> globs = {"*"};   // which file names count inside folders
  std::string text_field = "text";          // of a JSONL line; the name most corpora use
  std::filesystem::path out;
  bool replace = false;            // an older dataset at `out` gives way
  int64_t vocab_size = 8192;       // an upper bound; small corpora yield fewer
  double heldout_ratio = 0.02;     // of the documents, chosen by hash; 0 to 0.5
  int64_t shard_tokens = 1 << 25;  // 64 MiB a shard at 2 bytes a token
  // Stop reading after the document that reaches this much text. With a limit, files are read in
  // the order of a hash of their path, so that the part taken is a fair sample of the whole.
  int64_t text_bytes_max = std::numeric_limits<int64_t>::max();
  // The tokenizer learns from this much of it, documents in hash order: past 100 MB the frequent
  // pairs do not change any more.
  int64_t tokenizer_text_bytes_max = 100'000'000;
  int num_threads = static_cast<int>(allowed_cores().size());
  uint64_t seed = 1;  // of the order of documents and of the split
  /// Throws Failure (exit 2) naming field, value and allowed range.
  void validate() const;
};

struct SplitReport {
  int64_t num_documents = 0;
  int64_t num_tokens = 0;
  int64_t num_text_bytes = 0;
  int64_t num_shards = 0;
};

struct BuildReport {
  std::filesystem::path out;
  int64_t num_files = 0;
  int64_t num_unreadable = 0;  // files and folders skipped with a warning
  int64_t num_duplicates = 0;  // documents that another one equals
  SplitReport train;
  SplitReport heldout;
  int64_t vocab_size = 0;
  std::string tokenizer_hash;
  std::string dataset_hash;
  double tokenizer_s = 0.0;
  double total_s = 0.0;
};

struct BuildProgress {
  const char* phase = "";    // "reading", "learning the vocabulary", "encoding"
  int64_t done_bytes = 0;    // of text
  int64_t total_bytes = -1;  // -1: not known
};

/// Builds in a temporary folder beside `out` that takes its name at the end: `out` is whole or
/// absent. The result depends on the text, its paths and the options, not on the number of
/// threads. The callback, which may be empty, is called from this thread. Throws Failure, one
/// line, also when told to stop.
BuildReport build_dataset(const BuildOptions& options,
                          const std::function<void(const BuildProgress&)>& on_progress = {},
                          const std::stop_token& stop = {});

}  // namespace pelago::data
