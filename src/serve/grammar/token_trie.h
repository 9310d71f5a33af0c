// A vocabulary as a tree of bytes, so that one walk tells which tokens a pattern allows: tokens
// that begin alike are followed together, and where no text goes on a whole branch is left out.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace pelago::serve {

/// Immutable: one for all constraints of a model.
class TokenTrie {
 public:
  /// vocab_size: of the model's logits; tokens that stand for no bytes are in no branch.
  TokenTrie(const data::Tokenizer& tokenizer, int64_t vocab_size);

  /// A branch's first byte, in the order of a walk: children follow their parent.
  struct Node {
    uint8_t byte = 0;
    uint16_t depth = 0;       // bytes before it
    int32_t end = 0;          // the first node that is not below this one
    int32_t first_token = 0;  // tokens that end here: [first_token, last_token) of tokens()
    int32_t last_token = 0;
  };
  const std::vector<Node>& nodes() const { return nodes_; }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  std::string_view bytes_of(int32_t token) const;
  int64_t vocab_size() const { return static_cast<int64_t>(bytes_begin_.size()) - 1; }
  size_t depth_max() const { return depth_max_; }

 private:
  std::vector<Node> nodes_;
  std::vector<int32_t> tokens_;
  std::vector<char> bytes_;  // of all tokens, one after another
  std::vector<size_t> bytes_begin_;
  size_t depth_max_ = 0;
};

}  // namespace pelago::serve
