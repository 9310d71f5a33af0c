// The expressions of a template, by recursive descent in the order of Jinja2's own parser: what
// binds how tightly is its order (a ~ b + c is (a ~ b) + c, and "is" binds to what stands directly
// before it).
#pragma once

#include <string>

#include "serve/template/syntax/token_cursor.h"

namespace pelago::serve {

class ExpressionParser : protected TokenCursor {
 protected:
  using TokenCursor::TokenCursor;
  using Kind = Expression::Kind;

  ExpressionPtr make(Kind kind, std::string name = "") const;
  /// One or several with commas between them.
  ExpressionPtr parse_tuple();
  ExpressionPtr parse_expression();
  /// Without "if" and "else" behind it.
  ExpressionPtr parse_or();
  /// Of a filter block and of set: the name comes first, or behind "|".
  ExpressionPtr parse_filter(ExpressionPtr value);

 private:
  /// To be called once an expression has its operands.
  ExpressionPtr grown(ExpressionPtr expression) const;
  ExpressionPtr join(Kind kind, std::string name, ExpressionPtr left, ExpressionPtr right) const;
  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  ExpressionPtr parse_compare();
  ExpressionPtr parse_binary(size_t level);
  ExpressionPtr parse_unary(bool with_filters);
  ExpressionPtr parse_primary();
  ExpressionPtr parse_bracket();
  ExpressionPtr parse_postfix(ExpressionPtr value);
  ExpressionPtr parse_subscript(ExpressionPtr value);
  ExpressionPtr parse_call(ExpressionPtr called);
  void parse_arguments(Expression& call);
  ExpressionPtr parse_filters(ExpressionPtr value);
  ExpressionPtr parse_one_filter(ExpressionPtr value);
  ExpressionPtr parse_test(ExpressionPtr value);
};

}  // namespace pelago::serve
