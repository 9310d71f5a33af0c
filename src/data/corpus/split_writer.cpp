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

PendingFolder::PendingFolder(const fs::path& out, bool replace) {
  std::error_code error;
  out_ = fs::absolute(out).lexically_normal();
  if (!out_.has_filename()) out_ = out_.parent_path();  // "corpus/"
  const bool exists = fs::exists(fs::symlink_status(out_));
  if (exists && !fs::is_directory(out_, error)) {
    fail_usage("{}: exists and is not a folder; choose another --out", out.string());
  }
  if (exists && !fs::is_empty(out_, error)) {
    if (!fs::exists(out_ / "dataset.json")) {
      fail_usage("{}: exists and is not a dataset; choose another --out", out.string());
    }
    if (!replace) {
      fail_usage("{}: exists; --fresh replaces it, or choose another --out", out.string());
    }
  }
  path_ = out_.string() + fmt::format(".{}.tmp", ::getpid());
  fs::remove_all(path_, error);
  fs::create_directories(path_, error);
  if (error) fail("{}: cannot be made: {}", path_.string(), error.message());
}

PendingFolder::~PendingFolder() {
  std::error_code ignored;
  if (!path_.empty()) fs::remove_all(path_, ignored);
}

void PendingFolder::commit() {
  sync_to_disk(path_);
  const fs::path old = out_.string() + fmt::format(".{}.old.tmp", ::getpid());
  std::error_code error;
  const bool replaces = fs::exists(out_);
  if (replaces) fs::rename(out_, old, error);
  if (!error) fs::rename(path_, out_, error);
  if (error) {
    std::error_code ignored;
    if (replaces && !fs::exists(out_)) fs::rename(old, out_, ignored);
    fail("{}: cannot take its name: {}", out_.string(), error.message());
  }
  path_.clear();
  sync_to_disk(out_.parent_path());
  if (replaces) fs::remove_all(old, error);
}

}  // namespace pelago::data
