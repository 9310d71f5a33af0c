#include "data/bpe/tokenizer_spec.h"

#include <algorithm>
#include <iterator>

#include "base/files.h"
#include "base/text/json.h"
#include "data/bpe/byte_alphabet.h"

namespace pelago::data {

namespace {

using Json = nlohmann::ordered_json;  // keys in the order of Hugging Face's own files

Json added_token_json(const AddedToken& token) {
  return Json{{"content", token.content},
              {"single_word", false},
              {"lstrip", false},
              {"rstrip", false},
              {"normalized", false},
              {"special", token.special}};
}

Json pre_tokenizer_json(const std::vector<std::string>& patterns) {
  Json parts = Json::array();
  for (const std::string& pattern : patterns) {
    parts.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", pattern}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  parts.push_back({{"type", "ByteLevel"},
                   {"add_prefix_space", false},
                   {"trim_offsets", true},
                   {"use_regex", false}});
  return Json{{"type", "Sequence"}, {"pretokenizers", std::move(parts)}};
}

// The vocabulary is written by hand: ordered_json compares each new key with all before it, which
// takes seconds at 128k tokens.
std::string vocabulary_text(const std::vector<std::string>& token_bytes) {
  std::string text = "{";
  for (size_t id = 0; id < token_bytes.size(); ++id) {
    if (token_bytes[id].empty()) continue;
    fmt::format_to(std::back_inserter(text),
                   "{}\n      {}: {}",
                   text.size() == 1 ? "" : ",",
                   Json(to_byte_alphabet(token_bytes[id])).dump(),
                   id);
  }
  return text + "\n    }";
}

std::string merges_text(const TokenizerSpec& spec) {
  const auto token = [&](TokenId id) {
    return to_byte_alphabet(spec.token_bytes[static_cast<size_t>(id)]);
  };
  std::string text = "[";
  for (const Merge& merge : spec.merges) {
    fmt::format_to(std::back_inserter(text),
                   "{}\n      {}",
                   text.size() == 1 ? "" : ",",
                   Json(token(merge.left) + " " + token(merge.right)).dump());
  }
  return text + (spec.merges.empty() ? "]" : "\n    ]");
}

void replace_once(std::string& text, const std::string& what, const std::string& by) {
  const size_t at = text.rfind(what);
  PELAGO_ASSERT(at != std::string::npos, "the template holds each mark once");
  text.replace(at, what.size(), by);
}

}  // namespace

std::string to_tokenizer_json(const TokenizerSpec& spec) {
  Json added = Json::array();
  for (const AddedToken& token : spec.added) {
    Json entry{{"id", token.id}};
    entry.update(added_token_json(token));
    added.push_back(std::move(entry));
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", true},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  const Json root = {{"version", "1.0"},
                     {"truncation", nullptr},
                     {"padding", nullptr},
                     {"added_tokens", std::move(added)},
                     {"normalizer", nullptr},
                     {"pre_tokenizer", pre_tokenizer_json(spec.patterns)},
                     {"post_processor", nullptr},
                     {"decoder", byte_level},
                     {"model",
                      {{"type", "BPE"},
                       {"dropout", nullptr},
                       {"unk_token", nullptr},
                       {"continuing_subword_prefix", nullptr},
                       {"end_of_word_suffix", nullptr},
                       {"fuse_unk", false},
                       {"byte_fallback", false},
                       {"ignore_merges", spec.ignore_merges},
                       {"vocab", 0},
                       {"merges", 0}}}};
  std::string text = root.dump(2);
  replace_once(text, "\"merges\": 0", "\"merges\": " + merges_text(spec));
  replace_once(text, "\"vocab\": 0", "\"vocab\": " + vocabulary_text(spec.token_bytes));
  return text;
}

std::string to_tokenizer_config_json(const TokenizerSpec& spec) {
  Json decoder = Json::object();
  for (const AddedToken& token : spec.added) {
    decoder[fmt::format("{}", token.id)] = added_token_json(token);
  }
  Json root = {{"add_prefix_space", false},
               {"added_tokens_decoder", std::move(decoder)},
               {"bos_token", nullptr},
               {"clean_up_tokenization_spaces", false}};
  const auto end = std::find_if(spec.added.begin(), spec.added.end(), [](const AddedToken& token) {
    return token.content == "<|endoftext|>";
  });
  if (end != spec.added.end()) {
    root["eos_token"] = end->content;
    root["pad_token"] = end->content;
  }
  root["tokenizer_class"] = "PreTrainedTokenizerFast";
  root["unk_token"] = nullptr;
  return root.dump(2);
}

std::string hash_of(const TokenizerSpec& spec) {
  std::string content = "pelago tokenizer 1";
  const auto add_number = [&](int64_t number) {
    for (int shift = 0; shift < 64; shift += 8) {
      content.push_back(static_cast<char>(static_cast<uint64_t>(number) >> shift));
    }
  };
  const auto add_text = [&](const std::string& text) {
    add_number(static_cast<int64_t>(text.size()));
    content += text;
  };
  add_number(spec.ignore_merges ? 1 : 0);
  add_number(static_cast<int64_t>(spec.patterns.size()));
  for (const std::string& pattern : spec.patterns) add_text(pattern);
  add_number(static_cast<int64_t>(spec.token_bytes.size()));
  for (const std::string& token : spec.token_bytes) add_text(token);
  for (const Merge& merge : spec.merges) {
    add_number(merge.left);
    add_number(merge.right);
    add_number(merge.result);
  }
  for (const AddedToken& token : spec.added) {
    add_number(token.id);
    add_number(token.special ? 1 : 0);
    add_text(token.content);
  }
  return hash_hex(content);
}

}  // namespace pelago::data
