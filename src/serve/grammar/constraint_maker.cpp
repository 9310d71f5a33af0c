#include "serve/grammar/constraint_maker.h"

#include <utility>

#include "serve/grammar/constraints.h"
#include "serve/grammar/token_constraint.h"

namespace pelago::serve {

namespace {

class SourcedConstraint final : public TokenConstraint {
 public:
  SourcedConstraint(Constraint constraint, ConstraintSource source)
      : constraint_(std::move(constraint)), source_(std::move(source)) {}
  std::unique_ptr<TokenCursor> start() const override { return constraint_->start(); }
  const ConstraintSource& source() const { return source_; }

 private:
  const Constraint constraint_;
  const ConstraintSource source_;
};

Result<Constraint> make(const Vocabulary& vocabulary,
                        ConstraintKind kind,
                        const std::string& text) {
  switch (kind) {
    case ConstraintKind::kJsonObject:
      return json_object_constraint(vocabulary);
    case ConstraintKind::kJsonSchema:
      return json_schema_constraint(vocabulary, text);
    case ConstraintKind::kRegex:
      return regex_constraint(vocabulary, text);
    case ConstraintKind::kGrammar:
      return grammar_constraint(vocabulary, text);
  }
  return Error{ErrorCode::kRefused, "structured output of an unknown kind"};
}

}  // namespace

ConstraintMaker constraint_maker(const data::Tokenizer& tokenizer, int64_t vocab_size) {
  const Vocabulary vocabulary = make_vocabulary(tokenizer, vocab_size);
  return [vocabulary](ConstraintKind kind, const std::string& text) -> Result<Constraint> {
    Result<Constraint> made = make(vocabulary, kind, text);
    if (!made) return made;
    return Constraint(std::make_shared<SourcedConstraint>(
        std::move(*made), ConstraintSource{.kind = kind, .text = text}));
  };
}

const ConstraintSource* source_of(const TokenConstraint& constraint) {
  const auto* sourced = dynamic_cast<const SourcedConstraint*>(&constraint);
  return sourced == nullptr ? nullptr : &sourced->source();
}

}  // namespace pelago::serve
