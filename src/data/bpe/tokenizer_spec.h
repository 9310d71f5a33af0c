// What a tokenizer is, as plain values, and its one form on disk: Hugging Face's tokenizer.json.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace pelago::data {

/// A token that BPE never makes, such as "<|endoftext|>".
struct AddedToken {
  TokenId id = 0;
  std::string content;
  bool special = true;  // decodes to nothing
};

/// One step of BPE: left and right side by side become result.
struct Merge {
  TokenId left = 0;
  TokenId right = 0;
  TokenId result = 0;
};

struct TokenizerSpec {
  std::vector<std::string> patterns;     // of the pre-tokenizer, one after another
  std::vector<std::string> token_bytes;  // by id; empty for added tokens and for unused ids
  std::vector<Merge> merges;             // the first that applies is done first
  std::vector<AddedToken> added;         // by id
  bool ignore_merges = false;            // a piece that is a token needs no merging (Llama 3)
};

/// Throws Failure naming `name` and the part that is wrong or not supported. Every byte has a
/// token, every id lies below token_bytes.size(), merges speak of tokens that exist.
TokenizerSpec parse_tokenizer_json(std::string_view json, const std::string& name);

/// The text of tokenizer.json, merges as strings "a b", which every release of Hugging Face's
/// library reads.
std::string to_tokenizer_json(const TokenizerSpec& spec);

/// The text of tokenizer_config.json, by which transformers.AutoTokenizer loads the folder.
std::string to_tokenizer_config_json(const TokenizerSpec& spec);

/// XXH3 of the content in an order of its own, 32 hex digits: two files that say the same thing
/// have one hash, whatever their form.
std::string hash_of(const TokenizerSpec& spec);

}  // namespace pelago::data
