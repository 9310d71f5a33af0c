// A pattern of a stranger, as structured output takes them: the first byte says whether it is a
// regex, a JSON schema or a grammar. One that is taken is followed for some tokens.
#include "../serve/engine/fake_runner.h"
#include "outside_bytes.h"
#include "serve/grammar/constraints.h"
#include "serve/grammar/token_constraint.h"

namespace pelago::serve {
namespace {

pelago::Result<Constraint> constraint_of(char kind, std::string_view text) {
  static const Vocabulary vocabulary = make_vocabulary(byte_tokenizer(), 260);
  if (kind == 'r') return regex_constraint(vocabulary, text);
  if (kind == 'j') return json_schema_constraint(vocabulary, text);
  return grammar_constraint(vocabulary, text);
}

void follow(const Constraint& constraint, pelago::Rng rng) {
  const auto cursor = constraint->start();
  for (int num_tokens = 0; num_tokens < 24; ++num_tokens) {
    const auto allowed = cursor->allowed();
    if (!allowed) return;
    std::vector<int32_t> tokens;
    for (int32_t token = 0; token < 256; ++token) {
      if (is_allowed(**allowed, token)) tokens.push_back(token);
    }
    if (tokens.empty()) return;
    cursor->advance(tokens[rng.next_below(tokens.size())]);
  }
}

}  // namespace
}  // namespace pelago::serve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  if (num_bytes == 0) return 0;
  const std::string_view text = pelago::fuzz::text_of(data + 1, num_bytes - 1);
  const auto constraint = pelago::serve::constraint_of(static_cast<char>(data[0]), text);
  if (constraint) {
    pelago::serve::follow(*constraint, pelago::Rng(num_bytes));
  } else {
    PELAGO_ASSERT(!constraint.error().message.empty(), "a refusal says why");
    PELAGO_ASSERT(constraint.error().message.find('\n') == std::string::npos, "in one line");
  }
  return 0;
}
