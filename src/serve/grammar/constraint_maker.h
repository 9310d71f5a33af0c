// From what a request asks for to a constraint, and back: a constraint knows what it was made of,
// so that another process can make it again.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "data/tokenizer.h"
#include "serve/engine.h"

namespace pelago::serve {

enum class ConstraintKind : uint8_t { kJsonObject, kJsonSchema, kRegex, kGrammar };

/// text: a schema, a pattern, a grammar; empty for kJsonObject.
struct ConstraintSource {
  ConstraintKind kind = ConstraintKind::kJsonObject;
  std::string text;
};

/// Makes a constraint of its text. kRefused with one line that says what is wrong with it.
using ConstraintMaker = std::function<Result<std::shared_ptr<const TokenConstraint>>(
    ConstraintKind kind, const std::string& text)>;

/// For the vocabulary of a model; vocab_size: of its logits.
ConstraintMaker constraint_maker(const data::Tokenizer& tokenizer, int64_t vocab_size);

/// What a constraint of constraint_maker() was made of; null for any other.
const ConstraintSource* source_of(const TokenConstraint& constraint);

}  // namespace pelago::serve
