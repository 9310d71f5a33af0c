#include "data/shards/dataset_index.h"

#include "base/error.h"
#include "base/files.h"
#include "base/text/json.h"
#include "data/shards/shard.h"

namespace pelago::data {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "pelago-dataset";
constexpr int kVersion = 1;

SplitEntry read_split(const std::string& name, const Json& json, const std::string& where) {
  SplitEntry split{.name = name,
                   .num_documents = json.at("documents").get<int64_t>(),
                   .num_tokens = json.at("tokens").get<int64_t>(),
                   .num_text_bytes = json.at("text_bytes").get<int64_t>(),
                   .shards = {}};
  int64_t num_tokens = 0;
  for (const Json& entry : json.at("shards")) {
    ShardEntry shard{.file = entry.at("file").get<std::string>(),
                     .num_tokens = entry.at("tokens").get<int64_t>(),
                     .hash = entry.at("hash").get<std::string>()};
    const bool is_plain_name = !shard.file.empty() && shard.file.find('/') == std::string::npos;
    if (!is_plain_name || shard.num_tokens < 0 || shard.num_tokens > split.num_tokens) {
      fail("{}: split {}: shard \"{}\" with {} tokens cannot be",
           where,
           name,
           shard.file,
           shard.num_tokens);
    }
    num_tokens += shard.num_tokens;
    split.shards.push_back(std::move(shard));
  }
  if (num_tokens != split.num_tokens) {
    fail("{}: split {}: its shards hold {} tokens, not {}",
         where,
         name,
         num_tokens,
         split.num_tokens);
  }
  return split;
}

}  // namespace

DatasetIndex DatasetIndex::read(const std::filesystem::path& dataset_dir) {
  const std::filesystem::path path = dataset_dir / "dataset.json";
  if (!std::filesystem::exists(path)) {
    fail_usage("{}: not a dataset (no dataset.json); make one with pelago data build --out {}",
               dataset_dir.string(),
               dataset_dir.string());
  }
  const std::string where = path.string();
  try {
    const Json json = Json::parse(read_text_file(path));
    if (json.at("format") != kFormat || json.at("version") != kVersion) {
      fail("{}: format {} version {}, this program reads {} {}",
           where,
           json.at("format").dump(),
           json.at("version").dump(),
           kFormat,
           kVersion);
    }
    DatasetIndex index;
    index.tokenizer_hash = json.at("tokenizer_hash").get<std::string>();
    index.vocab_size = json.at("vocab_size").get<int64_t>();
    index.heldout_text_hash = json.at("heldout_text").at("hash").get<std::string>();
    for (const auto& [name, split] : json.at("splits").items()) {
      index.splits.push_back(read_split(name, split, where));
    }
    return index;
  } catch (const Json::exception& error) {
    fail("{}: not the index of a dataset: {}", where, error.what());
  }
}

std::string DatasetIndex::to_json() const {
  Json splits_json = Json::object();
  for (const SplitEntry& split : splits) {
    Json shards = Json::array();
    for (const ShardEntry& shard : split.shards) {
      shards.push_back({{"file", shard.file}, {"tokens", shard.num_tokens}, {"hash", shard.hash}});
    }
    splits_json[split.name] = {{"documents", split.num_documents},
                               {"tokens", split.num_tokens},
                               {"text_bytes", split.num_text_bytes},
                               {"shards", std::move(shards)}};
  }
  const Json json = {{"format", kFormat},
                     {"version", kVersion},
                     {"dataset_hash", dataset_hash()},
                     {"tokenizer_hash", tokenizer_hash},
                     {"vocab_size", vocab_size},
                     {"dtype", token_bytes_for(vocab_size) == 2 ? "uint16" : "uint32"},
                     {"splits", std::move(splits_json)},
                     {"heldout_text", {{"file", "heldout.txt"}, {"hash", heldout_text_hash}}}};
  return json.dump(2) + "\n";
}

std::string DatasetIndex::dataset_hash() const {
  std::string content = tokenizer_hash;
  for (const SplitEntry& split : splits) {
    content += "\n" + split.name;
    for (const ShardEntry& shard : split.shards) content += "\n" + shard.hash;
  }
  return hash_hex(content);
}

const SplitEntry& DatasetIndex::split(const std::string& name,
                                      const std::filesystem::path& dataset_dir) const {
  for (const SplitEntry& entry : splits) {
    if (entry.name == name) return entry;
  }
  fail("{}: has no split named {}", dataset_dir.string(), name);
}

}  // namespace pelago::data
