#include "data/corpus/split_writer.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/files.h"

namespace pelago::data {

namespace fs = std::filesystem;

SplitWriter::SplitWriter(fs::path folder,
                         const std::string& name,
                         const Tokenizer& tokenizer,
                         int64_t shard_tokens)
    : folder_(std::move(folder)),
      end_of_text_(tokenizer.end_of_text()),
      shard_tokens_(shard_tokens),
      writer_(tokenizer.vocab_size(), tokenizer.hash()) {
  entry_.name = name;
}

void SplitWriter::add(std::vector<TokenId> tokens, int64_t text_bytes) {
  tokens.push_back(end_of_text_);
  for (std::span<const TokenId> left = tokens; !left.empty();) {
    const auto room = static_cast<size_t>(shard_tokens_ - writer_.num_tokens());
    const auto part = left.first(std::min(room, left.size()));
    writer_.add(part);
    left = left.subspan(part.size());
    if (writer_.num_tokens() == shard_tokens_) close_shard();
  }
  ++entry_.num_documents;
  entry_.num_tokens += static_cast<int64_t>(tokens.size());
  entry_.num_text_bytes += text_bytes;
}

SplitEntry SplitWriter::finish() {
  if (writer_.num_tokens() > 0) close_shard();
  return std::move(entry_);
}

void SplitWriter::close_shard() {
  ShardEntry shard{.file = fmt::format("{}-{:05}.bin", entry_.name, entry_.shards.size()),
                   .num_tokens = writer_.num_tokens(),
                   .hash = {}};
  shard.hash = writer_.finish(folder_ / shard.file);
  entry_.shards.push_back(std::move(shard));
}

void refuse_taken_folder(const fs::path& out, bool replace) {
  std::error_code error;
  if (!fs::exists(fs::symlink_status(out))) return;
  if (!fs::is_directory(out, error)) {
    fail_usage("{}: exists and is not a folder; choose another --out", out.string());
  }
  if (fs::is_empty(out, error)) return;
  if (!fs::exists(out / "dataset.json")) {
    fail_usage("{}: exists and is not a dataset; choose another --out", out.string());
  }
  if (!replace)
    fail_usage("{}: exists; --fresh replaces it, or choose another --out", out.string());
}

}  // namespace pelago::data
