#include <algorithm>
#include <unordered_map>

#include "base/error.h"
#include "base/log.h"
#include "base/text/json.h"
#include "data/bpe/byte_alphabet.h"
#include "data/bpe/pre_tokenizer.h"
#include "data/bpe/tokenizer_spec.h"

namespace pelago::data {

namespace {

using Json = nlohmann::json;

// Three times the largest vocabulary in use (262,144 of Gemma 3 and Llama 4's 202,048), so that a
// damaged id is refused before it is allocated.
constexpr int64_t kNumTokensMax = 1 << 20;

/// Reads one file; every refusal names it.
class SpecReader {
 public:
  SpecReader(const Json& root, const std::string& name) : root_(root), name_(name) {}

  TokenizerSpec read() {
    if (!root_.is_object()) refuse("not a JSON object");
    const Json& model = part(root_, "model");
    read_model_options(model);
    read_normalizer(root_.value("normalizer", Json()));
    read_pre_tokenizer(root_.value("pre_tokenizer", Json()));
    if (!saw_byte_level_) refuse("pre_tokenizer without ByteLevel is not supported");
    read_tokens(part(model, "vocab"));
    read_merges(part(model, "merges"));
    check_bytes();
    return std::move(spec_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const { fail("{}: {}", name_, what); }

  const Json& part(const Json& object, const char* key) const {
    if (!object.is_object() || !object.contains(key)) refuse(fmt::format("{} is missing", key));
    return object.at(key);
  }

  static std::string text_or(const Json& object, const char* key, const std::string& otherwise) {
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : otherwise;
  }

  static bool flag_or(const Json& object, const char* key, bool otherwise) {
    const auto found = object.find(key);
    return found != object.end() && found->is_boolean() ? found->get<bool>() : otherwise;
  }

  void read_model_options(const Json& model) {
    if (!model.is_object()) refuse("model is not an object");
    // Files of before 2020 have no model.type; only BPE has merges.
    const std::string type = text_or(model, "type", model.contains("merges") ? "BPE" : "unknown");
    if (type != "BPE") refuse(fmt::format("model.type {} is not supported; only BPE is", type));
    for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!text_or(model, affix, "").empty()) {
        refuse(fmt::format("model.{} is not supported", affix));
      }
    }
    if (flag_or(model, "byte_fallback", false)) refuse("model.byte_fallback is not supported");
    if (model.contains("dropout") && model["dropout"].is_number() && model["dropout"] != 0) {
      refuse("model.dropout is not supported");
    }
    spec_.ignore_merges = flag_or(model, "ignore_merges", false);
  }

  void read_normalizer(const Json& normalizer) {
    if (normalizer.is_null()) return;
    const std::string type = text_or(normalizer, "type", "unknown");
    if (type != "NFC") refuse(fmt::format("normalizer {} is not supported", type));
    // Qwen asks for NFC. Nearly all text is NFC already, and bytes that we change cannot come back.
    log_debug("tokenizer normalizer skipped file={} type=NFC", name_);
  }

  void read_pre_tokenizer(const Json& node) {
    if (!node.is_object()) refuse("pre_tokenizer is missing");
    const std::string type = text_or(node, "type", "unknown");
    if (type == "Sequence") {
      for (const Json& child : part(node, "pretokenizers")) read_pre_tokenizer(child);
    } else if (saw_byte_level_) {
      refuse("pre_tokenizer has a part after ByteLevel, which is not supported");
    } else if (type == "Split") {
      read_split(node);
    } else if (type == "Digits") {
      spec_.patterns.push_back(flag_or(node, "individual_digits", false) ? "\\p{N}" : "\\p{N}+");
    } else if (type == "ByteLevel") {
      if (flag_or(node, "add_prefix_space", true)) {
        refuse("pre_tokenizer ByteLevel with add_prefix_space is not supported");
      }
      if (flag_or(node, "use_regex", true)) spec_.patterns.emplace_back(kGpt2Pattern);
      saw_byte_level_ = true;
    } else {
      refuse(fmt::format("pre_tokenizer {} is not supported", type));
    }
  }

  void read_split(const Json& node) {
    const Json& pattern = part(node, "pattern");
    if (!pattern.is_object() || !pattern.contains("Regex") || !pattern["Regex"].is_string()) {
      refuse("pre_tokenizer Split needs a pattern {\"Regex\": \"...\"}");
    }
    // "Removed" with invert keeps the matches, as "Isolated" does; it would drop text that nothing
    // matches, which we keep.
    const std::string behavior = text_or(node, "behavior", "unknown");
    const bool keeps_matches =
        behavior == "Isolated" || (behavior == "Removed" && flag_or(node, "invert", false));
    if (!keeps_matches) {
      refuse(fmt::format("pre_tokenizer Split with behavior {} is not supported", behavior));
    }
    spec_.patterns.push_back(pattern["Regex"].get<std::string>());
  }

  size_t checked_id(const Json& id, const std::string& token) const {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= kNumTokensMax) {
      refuse(fmt::format(
          "token {} has id {}, not one of 0 to {}", token, id.dump(), kNumTokensMax - 1));
    }
    return id.get<size_t>();
  }

  void read_tokens(const Json& vocab) {
    if (!vocab.is_object()) refuse("model.vocab is not an object");
    std::vector<bool> taken;
    const auto take = [&](size_t id, const std::string& token) {
      if (id >= taken.size()) taken.resize(id + 1);
      if (taken[id]) refuse(fmt::format("token {} has id {}, which another token has", token, id));
      taken[id] = true;
    };
    for (const Json& added : root_.value("added_tokens", Json::array())) {
      const Json& content = part(added, "content");
      if (!content.is_string()) refuse("added_tokens: content is not a string");
      AddedToken token{.id = 0,
                       .content = content.get<std::string>(),
                       .special = flag_or(added, "special", false)};
      const size_t id = checked_id(part(added, "id"), token.content);
      take(id, token.content);
      token.id = static_cast<TokenId>(id);
      added_ids_[token.content] = token.id;
      spec_.added.push_back(std::move(token));
    }
    std::sort(spec_.added.begin(), spec_.added.end(), [](const auto& a, const auto& b) {
      return a.id < b.id;
    });
    for (const auto& [token, value] : vocab.items()) {
      const size_t id = checked_id(value, token);
      const auto added = added_ids_.find(token);
      if (added != added_ids_.end()) {  // GPT-2 lists its special token in both places
        if (static_cast<size_t>(added->second) == id) continue;
        refuse(fmt::format("token {} has two ids, {} and {}", token, added->second, id));
      }
      take(id, token);
      auto bytes = from_byte_alphabet(token);
      if (!bytes || bytes->empty()) {
        refuse(fmt::format("token {} is not written in the byte alphabet", token));
      }
      ids_[token] = static_cast<TokenId>(id);
      if (spec_.token_bytes.size() <= id) spec_.token_bytes.resize(id + 1);
      spec_.token_bytes[id] = *std::move(bytes);
    }
    spec_.token_bytes.resize(std::max(spec_.token_bytes.size(), taken.size()));
  }

  TokenId id_of(const std::string& token, size_t merge_idx) const {
    const auto found = ids_.find(token);
    if (found == ids_.end()) {
      refuse(
          fmt::format("merge {} speaks of {}, which is not in the vocabulary", merge_idx, token));
    }
    return found->second;
  }

  void read_merges(const Json& merges) {
    if (!merges.is_array()) refuse("model.merges is not a list");
    spec_.merges.reserve(merges.size());
    for (const Json& merge : merges) {
      const size_t merge_idx = spec_.merges.size();
      std::string left;
      std::string right;
      if (merge.is_string()) {
        const std::string& text = merge.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
          refuse(fmt::format("merge {} is not two tokens: {}", merge_idx, text));
        }
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
                 merge[1].is_string()) {
        left = merge[0].get<std::string>();
        right = merge[1].get<std::string>();
      } else {
        refuse(fmt::format("merge {} is not two tokens", merge_idx));
      }
      spec_.merges.push_back({.left = id_of(left, merge_idx),
                              .right = id_of(right, merge_idx),
                              .result = id_of(left + right, merge_idx)});
    }
  }

  void check_bytes() const {
    for (int byte = 0; byte < 256; ++byte) {
      const char as_char = static_cast<char>(byte);
      if (!ids_.contains(to_byte_alphabet({&as_char, 1}))) {
        refuse(fmt::format("the vocabulary has no token for byte {}; text could be lost", byte));
      }
    }
  }

  const Json& root_;         // outlives me
  const std::string& name_;  // outlives me
  TokenizerSpec spec_;
  std::unordered_map<std::string, TokenId> ids_;        // in the byte alphabet
  std::unordered_map<std::string, TokenId> added_ids_;  // as they are
  bool saw_byte_level_ = false;
};

}  // namespace

TokenizerSpec parse_tokenizer_json(std::string_view json, const std::string& name) {
  try {
    const Json root = Json::parse(json);
    return SpecReader(root, name).read();
  } catch (const Json::exception& error) {
    fail("{}: not a tokenizer.json: {}", name, error.what());
  }
}

}  // namespace pelago::data
