#include "serve/template/syntax/expression_parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace pelago::serve {

namespace {
// Of a tree: rendering calls itself, and a ~ b ~ c ... is as deep as it is long.
constexpr int kHeightMax = 500;
}  // namespace

ExpressionPtr ExpressionParser::make(Kind kind, std::string name) const {
  auto expression = std::make_unique<Expression>();
  expression->kind = kind;
  expression->line = peek().line;
  expression->name = std::move(name);
  return expression;
}

ExpressionPtr ExpressionParser::grown(ExpressionPtr expression) const {
  for (const auto& operand : expression->operands) {
    if (operand) expression->height = std::max(expression->height, operand->height + 1);
  }
  for (const auto& [name, operand] : expression->named) {
    expression->height = std::max(expression->height, operand->height + 1);
  }
  if (expression->height > kHeightMax) refuse("an expression is too long");
  return expression;
}

ExpressionPtr ExpressionParser::join(Kind kind,
                                     std::string name,
                                     ExpressionPtr left,
                                     ExpressionPtr right) const {
  auto expression = make(kind, std::move(name));
  expression->operands.push_back(std::move(left));
  expression->operands.push_back(std::move(right));
  return grown(std::move(expression));
}

ExpressionPtr ExpressionParser::parse_tuple() {
  ExpressionPtr first = parse_expression();
  if (!is_operator(",")) return first;
  auto list = make(Kind::kList);
  list->operands.push_back(std::move(first));
  while (accept(",")) {
    if (peek().kind == Token::Kind::kBlockEnd || peek().kind == Token::Kind::kOutputEnd ||
        is_operator(")"))
      break;
    list->operands.push_back(parse_expression());
  }
  return grown(std::move(list));
}

ExpressionPtr ExpressionParser::parse_expression() {
  const Deeper deeper(*this);
  ExpressionPtr value = parse_or();
  while (accept_name("if")) {
    auto choice = make(Kind::kChoice);
    choice->operands.push_back(std::move(value));
    choice->operands.push_back(parse_or());
    choice->operands.push_back(accept_name("else") ? parse_expression() : nullptr);
    value = grown(std::move(choice));
  }
  return value;
}

ExpressionPtr ExpressionParser::parse_or() {
  ExpressionPtr left = parse_and();
  while (accept_name("or")) left = join(Kind::kOr, "", std::move(left), parse_and());
  return left;
}

ExpressionPtr ExpressionParser::parse_and() {
  ExpressionPtr left = parse_not();
  while (accept_name("and")) left = join(Kind::kAnd, "", std::move(left), parse_not());
  return left;
}

ExpressionPtr ExpressionParser::parse_not() {
  const Deeper deeper(*this);
  if (!is_name("not")) return parse_compare();
  auto expression = make(Kind::kNot);
  take();
  expression->operands.push_back(parse_not());
  return grown(std::move(expression));
}

ExpressionPtr ExpressionParser::parse_compare() {
  ExpressionPtr left = parse_binary(0);
  ExpressionPtr whole;
  while (true) {
    std::string operation;
    for (const std::string_view name : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (is_operator(name)) operation = name;
    }
    if (is_name("in")) operation = "in";
    if (is_name("not") && peek(1).kind == Token::Kind::kName && peek(1).text == "in") {
      take();
      operation = "not in";
    }
    if (operation.empty()) return whole ? std::move(whole) : std::move(left);
    take();
    if (whole) refuse("a chain of comparisons: write it with 'and'");
    whole = join(Kind::kBinary, operation, std::move(left), parse_binary(0));
  }
}

ExpressionPtr ExpressionParser::parse_binary(size_t level) {
  static const std::vector<std::vector<std::string_view>> kLevels = {
      {"+", "-"}, {"~"}, {"*", "//", "/", "%"}, {"**"}};
  if (level == kLevels.size()) return parse_unary(true);
  ExpressionPtr left = parse_binary(level + 1);
  while (true) {
    const auto& names = kLevels[level];
    const bool fits = peek().kind == Token::Kind::kOperator &&
                      std::find(names.begin(), names.end(), peek().text) != names.end();
    if (!fits) return left;
    const std::string name = take().text;
    left = join(Kind::kBinary, name, std::move(left), parse_binary(level + 1));
  }
}

ExpressionPtr ExpressionParser::parse_unary(bool with_filters) {
  const Deeper deeper(*this);
  ExpressionPtr value;
  if (is_operator("-") || is_operator("+")) {
    const bool is_negative = take().text == "-";
    value = parse_unary(false);
    if (is_negative) {
      auto negative = make(Kind::kNegative);
      negative->operands.push_back(std::move(value));
      value = grown(std::move(negative));
    }
  } else {
    value = parse_postfix(parse_primary());
  }
  return with_filters ? parse_filters(std::move(value)) : std::move(value);
}

ExpressionPtr ExpressionParser::parse_primary() {
  if (peek().kind == Token::Kind::kOperator) return parse_bracket();
  auto expression = make(Kind::kLiteral);
  if (peek().kind == Token::Kind::kString) {
    std::string text;
    while (peek().kind == Token::Kind::kString) text += take().text;
    expression->value = Value(std::move(text));
  } else if (peek().kind == Token::Kind::kNumber) {
    expression->value = take().value;
  } else {
    const std::string name = take_name();
    if (name == "true" || name == "True") {
      expression->value = true;
    } else if (name == "false" || name == "False") {
      expression->value = false;
    } else if (name == "none" || name == "None") {
      expression->value = Value::None{};
    } else {
      expression->kind = Kind::kName;
      expression->name = name;
    }
  }
  return grown(std::move(expression));
}

ExpressionPtr ExpressionParser::parse_bracket() {
  if (accept("(")) {
    if (accept(")")) return make(Kind::kList);
    ExpressionPtr inner = parse_tuple();
    expect(")");
    return inner;
  }
  if (accept("[")) {
    auto list = make(Kind::kList);
    while (!is_operator("]")) {
      list->operands.push_back(parse_expression());
      if (!accept(",")) break;
    }
    expect("]");
    return grown(std::move(list));
  }
  if (!accept("{")) refuse(fmt::format("'{}' is not understood", peek().text));
  auto dict = make(Kind::kDict);
  while (!is_operator("}")) {
    dict->operands.push_back(parse_expression());
    expect(":");
    dict->operands.push_back(parse_expression());
    if (!accept(",")) break;
  }
  expect("}");
  return grown(std::move(dict));
}

ExpressionPtr ExpressionParser::parse_postfix(ExpressionPtr value) {
  while (true) {
    if (accept(".")) {
      auto attribute = make(Kind::kAttribute);
      if (peek().kind == Token::Kind::kNumber) {
        attribute->kind = Kind::kIndex;
        attribute->operands.push_back(std::move(value));
        attribute->operands.push_back(make(Kind::kLiteral));
        attribute->operands[1]->value = take().value;
      } else {
        attribute->name = take_name();
        attribute->operands.push_back(std::move(value));
      }
      value = grown(std::move(attribute));
    } else if (accept("[")) {
      value = parse_subscript(std::move(value));
    } else if (is_operator("(")) {
      value = parse_call(std::move(value));
    } else {
      return value;
    }
  }
}

ExpressionPtr ExpressionParser::parse_subscript(ExpressionPtr value) {
  auto index = make(Kind::kIndex);
  index->operands.push_back(std::move(value));
  const auto ends = [this] { return is_operator(":") || is_operator("]"); };
  index->operands.push_back(ends() ? nullptr : parse_expression());
  if (is_operator(":")) {
    index->kind = Kind::kSlice;
    for (int part = 0; part < 2; ++part) {
      const bool has_part = accept(":");
      index->operands.push_back(!has_part || ends() ? nullptr : parse_expression());
    }
  } else if (index->operands[1] == nullptr) {
    refuse("[] needs an index");
  }
  expect("]");
  return grown(std::move(index));
}

ExpressionPtr ExpressionParser::parse_call(ExpressionPtr called) {
  auto call = make(Kind::kCall);
  call->operands.push_back(std::move(called));
  parse_arguments(*call);
  return grown(std::move(call));
}

void ExpressionParser::parse_arguments(Expression& call) {
  expect("(");
  while (!is_operator(")")) {
    if (peek().kind == Token::Kind::kName && peek(1).kind == Token::Kind::kOperator &&
        peek(1).text == "=") {
      std::string name = take().text;
      take();
      call.named.emplace_back(std::move(name), parse_expression());
    } else {
      call.operands.push_back(parse_expression());
    }
    if (!accept(",")) break;
  }
  expect(")");
}

ExpressionPtr ExpressionParser::parse_filters(ExpressionPtr value) {
  while (true) {
    if (is_operator("|")) {
      take();
      value = parse_one_filter(std::move(value));
    } else if (is_name("is")) {
      value = parse_test(std::move(value));
    } else if (is_operator("(")) {
      value = parse_call(std::move(value));
    } else {
      return value;
    }
  }
}

ExpressionPtr ExpressionParser::parse_one_filter(ExpressionPtr value) {
  auto filter = make(Kind::kFilter);
  filter->name = take_name();
  filter->operands.push_back(std::move(value));
  if (is_operator("(")) parse_arguments(*filter);
  return grown(std::move(filter));
}

ExpressionPtr ExpressionParser::parse_filter(ExpressionPtr value) {
  accept("|");
  value = parse_one_filter(std::move(value));
  while (accept("|")) value = parse_one_filter(std::move(value));
  return value;
}

ExpressionPtr ExpressionParser::parse_test(ExpressionPtr value) {
  take();
  const bool is_negated = accept_name("not");
  auto test = make(Kind::kTest);
  test->name = take_name();
  test->operands.push_back(std::move(value));
  const bool is_word = peek().kind == Token::Kind::kName && !is_name("else") && !is_name("or") &&
                       !is_name("and") && !is_name("if") && !is_name("is") && !is_name("in") &&
                       !is_name("not") && !is_name("recursive");
  if (is_operator("(")) {
    parse_arguments(*test);
  } else if (is_word || peek().kind == Token::Kind::kString ||
             peek().kind == Token::Kind::kNumber || is_operator("[") || is_operator("{")) {
    test->operands.push_back(parse_postfix(parse_primary()));
  }
  if (!is_negated) return grown(std::move(test));
  auto negation = make(Kind::kNot);
  negation->operands.push_back(std::move(test));
  return grown(std::move(negation));
}

}  // namespace pelago::serve
