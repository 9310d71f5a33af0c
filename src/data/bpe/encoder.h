// Turns one piece of text into tokens: the lowest-ranked merge first, the leftmost of equals, as
// Hugging Face's library does. Pieces of up to 64 bytes rescan an array for the best pair, which
// is quickest while it fits in a few cache lines; longer ones keep a heap over a linked list, so
// that a megabyte of one letter takes n log n and not n squared.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "data/bpe/pair_map.h"
#include "data/bpe/tokenizer_spec.h"

namespace pelago::data {

class BpeEncoder {
 public:
  /// spec: as parse_tokenizer_json() or training returns it.
  explicit BpeEncoder(const TokenizerSpec& spec);

  /// Appends the tokens of piece, which has at most 2^31 - 2 bytes.
  void encode(std::string_view piece, std::vector<TokenId>& out) const;

 private:
  struct Step {
    uint32_t rank = UINT32_MAX;
    TokenId result = 0;
  };

  Step step_of(TokenId left, TokenId right) const;
  void encode_short(std::string_view piece, std::vector<TokenId>& out) const;
  void encode_long(std::string_view piece, std::vector<TokenId>& out) const;

  std::vector<TokenId> id_of_byte_;
  PairMap<Step> steps_;
  std::map<std::string, TokenId, std::less<>> whole_pieces_;  // filled if merges may be skipped
};

}  // namespace pelago::data
