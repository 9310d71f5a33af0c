#include "data/inspect.h"

#include <algorithm>
#include <iterator>

#include "base/error.h"
#include "base/files.h"
#include "data/bpe/pre_tokenizer.h"
#include "data/dataset.h"
#include "data/shards/dataset_index.h"

namespace pelago::data {

namespace {

std::vector<int64_t> count_tokens(const TokenStream& stream) {
  std::vector<int64_t> counts(static_cast<size_t>(stream.vocab_size()));
  std::vector<int64_t> tokens;
  for (int64_t begin = 0; begin < stream.num_tokens();) {
    tokens.resize(static_cast<size_t>(std::min<int64_t>(1 << 16, stream.num_tokens() - begin)));
    stream.read(begin, tokens);
    for (const int64_t token : tokens) ++counts[static_cast<size_t>(token)];
    begin += static_cast<int64_t>(tokens.size());
  }
  return counts;
}

std::vector<TokenCount> most_frequent(const std::vector<int64_t>& counts,
                                      const Tokenizer& tokenizer,
                                      int num_wanted) {
  std::vector<TokenCount> found;
  for (size_t token = 0; token < counts.size(); ++token) {
    if (counts[token] == 0) continue;
    found.push_back({.token = static_cast<TokenId>(token), .text = {}, .count = counts[token]});
  }
  std::stable_sort(found.begin(), found.end(), [](const TokenCount& a, const TokenCount& b) {
    return a.count > b.count;
  });
  found.resize(std::min(found.size(), static_cast<size_t>(num_wanted)));
  for (TokenCount& entry : found) {
    const std::string_view special = tokenizer.special_text(entry.token);
    entry.text = special.empty() ? escaped(tokenizer.token_bytes(entry.token)) : special;
  }
  return found;
}

std::string decoded_start(const TokenStream& stream, const Tokenizer& tokenizer, int num_tokens) {
  std::vector<int64_t> tokens(
      static_cast<size_t>(std::min<int64_t>(num_tokens, stream.num_tokens())));
  if (!tokens.empty()) stream.read(0, tokens);
  const std::vector<TokenId> ids(tokens.begin(), tokens.end());
  return tokenizer.decode(ids);
}

}  // namespace

DatasetSummary inspect_dataset(const std::filesystem::path& dataset_dir,
                               const InspectOptions& options) {
  const DatasetIndex index = DatasetIndex::read(dataset_dir);
  const Tokenizer tokenizer = Tokenizer::read(dataset_dir / "tokenizer.json");
  if (tokenizer.hash() != index.tokenizer_hash || tokenizer.vocab_size() != index.vocab_size) {
    fail("{}: is tokenizer {}, but the shards were made with {}; put the dataset's own back",
         (dataset_dir / "tokenizer.json").string(),
         tokenizer.hash(),
         index.tokenizer_hash);
  }
  DatasetSummary summary;
  summary.dataset_hash = index.dataset_hash();
  summary.tokenizer_hash = index.tokenizer_hash;
  summary.vocab_size = index.vocab_size;
  for (const SplitEntry& split : index.splits) {
    const TokenStream stream(dataset_dir, split.name, options.verify);
    const auto num_text_tokens = std::max<int64_t>(1, split.num_tokens - split.num_documents);
    summary.splits.push_back({.name = split.name,
                              .num_documents = split.num_documents,
                              .num_tokens = split.num_tokens,
                              .num_text_bytes = split.num_text_bytes,
                              .num_shards = static_cast<int64_t>(split.shards.size()),
                              .bytes_per_token = static_cast<double>(split.num_text_bytes) /
                                                 static_cast<double>(num_text_tokens)});
    if (split.name != "train") continue;
    const std::vector<int64_t> counts = count_tokens(stream);
    summary.num_tokens_used =
        std::count_if(counts.begin(), counts.end(), [](int64_t count) { return count > 0; });
    summary.most_frequent = most_frequent(counts, tokenizer, options.num_most_frequent);
    summary.sample = decoded_start(stream, tokenizer, options.sample_tokens);
  }
  if (options.verify) {
    const auto text_path = dataset_dir / "heldout.txt";
    if (hash_hex(MappedFile(text_path).bytes()) != index.heldout_text_hash) {
      fail("{}: corrupt: its hash is not {}", text_path.string(), index.heldout_text_hash);
    }
  }
  summary.hashes_verified = options.verify;
  return summary;
}

std::string escaped(std::string_view bytes) {
  std::string text;
  while (!bytes.empty()) {
    const size_t num_valid = valid_utf8_prefix_bytes(bytes);
    const size_t num_taken = std::max<size_t>(num_valid, 1);
    for (const char c : bytes.substr(0, num_taken)) {
      const auto byte = static_cast<uint8_t>(c);
      if (c == '\n') {
        text += "\\n";
      } else if (c == '\t') {
        text += "\\t";
      } else if (c == '\\') {
        text += "\\\\";
      } else if (byte < 0x20 || byte == 0x7F || num_valid == 0) {
        fmt::format_to(std::back_inserter(text), "\\x{:02x}", byte);
      } else {
        text.push_back(c);
      }
    }
    bytes.remove_prefix(num_taken);
  }
  return text;
}

}  // namespace pelago::data
