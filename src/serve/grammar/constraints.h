// Structured output: from a regex, a JSON schema or a grammar to a constraint that the engine can
// ask. Every function returns kRefused with one line that says what is wrong or not supported.
#pragma once

#include <memory>
#include <string_view>

#include "base/error.h"
#include "serve/engine.h"
#include "serve/grammar/token_trie.h"

namespace pelago::serve {

using Constraint = std::shared_ptr<const TokenConstraint>;  // owners: requests, and who made it
using Vocabulary = std::shared_ptr<const TokenTrie>;        // owners: constraints, and who made it

Vocabulary make_vocabulary(const data::Tokenizer& tokenizer, int64_t vocab_size);

/// The whole answer matches the pattern: what RE2 understands, without \b and ^, $ inside.
Result<Constraint> regex_constraint(Vocabulary vocabulary, std::string_view pattern);
/// The answer is JSON that fits the schema (JSON Schema 2020-12; docs/ENGINE.md says which part).
/// Properties come in the order of the schema.
Result<Constraint> json_schema_constraint(Vocabulary vocabulary, std::string_view schema);
/// The answer is any JSON object.
Result<Constraint> json_object_constraint(Vocabulary vocabulary);
/// The answer is what the rule "root" of a grammar in GBNF (llama.cpp's form) stands for.
Result<Constraint> grammar_constraint(Vocabulary vocabulary, std::string_view grammar);

}  // namespace pelago::serve
