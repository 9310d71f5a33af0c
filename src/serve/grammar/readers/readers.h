// From text to patterns. Each throws Failure (exit 2) with one line that says where and why.
#pragma once

#include <string>
#include <string_view>

#include "serve/grammar/patterns.h"

namespace pelago::serve {

struct RegexOptions {
  bool is_search = false;  // matches anywhere in the text, unless ^ and $ say otherwise
  bool in_json = false;    // the text stands inside a JSON string: quotes and the like are escaped
};
Patterns::Id read_regex(std::string_view regex, const RegexOptions& options, Patterns& patterns);

/// JSON of any kind, one object, or what a schema says. ordered: the schema as text.
Patterns::Id read_json_schema(std::string_view schema, Patterns& patterns);
Patterns::Id any_json_object(Patterns& patterns);

/// GBNF; returns the rule "root".
Patterns::Id read_grammar(std::string_view grammar, Patterns& patterns);

}  // namespace pelago::serve
