// By recursive descent, in the order of Jinja2's own parser: what binds how tightly is its order
// (a ~ b + c is (a ~ b) + c, and "is" binds to what stands directly before it).
#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <set>

#include "serve/template/syntax.h"

namespace pelago::serve {

namespace {

constexpr int kDepthMax = 200;  // of parentheses and blocks: the parser calls itself
constexpr int kHeightMax =
    500;  // of a tree: rendering calls itself, a ~ b ~ c ... is as deep as long
using Kind = Expression::Kind;

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize_template(source)) {}

  std::vector<Statement> parse() { return parse_body({}); }

 private:
  class Deeper {
   public:
    explicit Deeper(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > kDepthMax) parser_.refuse("nested too deep");
    }
    ~Deeper() { --parser_.depth_; }

   private:
    Parser& parser_;
  };

  [[noreturn]] void refuse(const std::string& what) const {
    throw TemplateError(fmt::format("template line {}: {}", peek().line, what));
  }
  const Token& peek(size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  Token take() {
    Token token = peek();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool is_operator(std::string_view text) const {
    return peek().kind == Token::Kind::kOperator && peek().text == text;
  }
  bool is_name(std::string_view text) const {
    return peek().kind == Token::Kind::kName && peek().text == text;
  }
  bool accept(std::string_view operation) {
    if (!is_operator(operation)) return false;
    take();
    return true;
  }
  bool accept_name(std::string_view name) {
    if (!is_name(name)) return false;
    take();
    return true;
  }
  void expect(std::string_view operation) {
    if (!accept(operation))
      refuse(fmt::format("'{}' is missing before '{}'", operation, peek().text));
  }
  void expect_name(std::string_view name) {
    if (!accept_name(name)) refuse(fmt::format("'{}' is missing before '{}'", name, peek().text));
  }
  std::string take_name() {
    if (peek().kind != Token::Kind::kName) refuse("a name is missing");
    return take().text;
  }
  void end_block() {
    if (peek().kind != Token::Kind::kBlockEnd)
      refuse(fmt::format("'{}' is not understood", peek().text));
    take();
  }

  // ---- Statements ----

  // Up to a tag named in ends, which stays to be taken; without ends, up to the end of the source.
  std::vector<Statement> parse_body(const std::set<std::string>& ends) {
    const Deeper deeper(*this);
    std::vector<Statement> body;
    while (true) {
      Statement statement;
      statement.line = peek().line;
      if (peek().kind == Token::Kind::kEnd) {
        if (!ends.empty()) refuse(fmt::format("{} is missing", *ends.begin()));
        return body;
      }
      if (peek().kind == Token::Kind::kText) {
        statement.text = take().text;
      } else if (peek().kind == Token::Kind::kOutputBegin) {
        take();
        statement.kind = Statement::Kind::kOutput;
        statement.expression = parse_tuple();
        if (peek().kind != Token::Kind::kOutputEnd)
          refuse(fmt::format("'{}' is not understood", peek().text));
        take();
      } else {
        if (ends.contains(peek(1).text)) {
          take();
          return body;
        }
        take();
        parse_block(statement);
      }
      body.push_back(std::move(statement));
    }
  }

  void parse_block(Statement& statement) {
    const std::string name = take_name();
    if (name == "if") {
      parse_if(statement);
    } else if (name == "for") {
      parse_for(statement);
    } else if (name == "set") {
      parse_set(statement);
    } else if (name == "macro") {
      statement.kind = Statement::Kind::kMacro;
      statement.text = take_name();
      parse_parameters(statement);
      parse_until("endmacro", statement);
    } else if (name == "call") {
      statement.kind = Statement::Kind::kCallBlock;
      if (is_operator("(")) parse_parameters(statement);
      statement.expression = parse_expression();
      if (statement.expression->kind != Kind::kCall) refuse("call needs a call");
      parse_until("endcall", statement);
    } else if (name == "filter") {
      statement.kind = Statement::Kind::kFilterBlock;
      statement.expression = parse_filter(make(Kind::kLiteral));
      parse_until("endfilter", statement);
    } else if (name == "generation") {  // marks the answer for training, changes nothing
      statement.kind = Statement::Kind::kGroup;
      parse_until("endgeneration", statement);
    } else if (name == "break" || name == "continue") {
      if (num_loops_ == 0) refuse(name + " stands outside a loop");
      statement.kind = name == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue;
      end_block();
    } else {
      refuse(fmt::format("no block is called {}", name));
    }
  }

  void parse_until(const std::string& end, Statement& statement) {
    end_block();
    statement.body = parse_body({end});
    take();
    end_block();
  }

  void parse_if(Statement& statement) {
    const Deeper deeper(*this);
    statement.kind = Statement::Kind::kIf;
    statement.expression = parse_tuple();
    end_block();
    statement.body = parse_body({"elif", "else", "endif"});
    const std::string end = take().text;
    if (end == "elif") {
      Statement next;
      next.line = peek().line;
      parse_if(next);
      statement.otherwise.push_back(std::move(next));
      return;
    }
    end_block();
    if (end == "else") {
      statement.otherwise = parse_body({"endif"});
      take();
      end_block();
    }
  }

  void parse_for(Statement& statement) {
    statement.kind = Statement::Kind::kFor;
    parse_targets(statement);
    expect_name("in");
    statement.expression = parse_or();
    if (is_operator(",")) refuse("write a list in [ ]");
    if (accept_name("if")) statement.condition = parse_expression();
    if (is_name("recursive")) refuse("recursive loops are not supported");
    end_block();
    ++num_loops_;
    statement.body = parse_body({"else", "endfor"});
    --num_loops_;
    const bool has_else = take().text == "else";
    end_block();
    if (has_else) {
      statement.otherwise = parse_body({"endfor"});
      take();
      end_block();
    }
  }

  void parse_targets(Statement& statement) {
    const bool has_parentheses = accept("(");
    do {
      std::string target = take_name();
      if (accept(".")) target += '.' + take_name();
      statement.targets.push_back(std::move(target));
    } while (accept(","));
    if (has_parentheses) expect(")");
  }

  void parse_set(Statement& statement) {
    statement.kind = Statement::Kind::kSet;
    parse_targets(statement);
    if (accept("=")) {
      statement.expression = parse_tuple();
      end_block();
    } else {
      if (is_operator("|")) statement.condition = parse_filter(make(Kind::kLiteral));
      parse_until("endset", statement);
    }
  }

  void parse_parameters(Statement& statement) {
    expect("(");
    while (!is_operator(")")) {
      statement.targets.push_back(take_name());
      statement.defaults.push_back(accept("=") ? parse_expression() : nullptr);
      if (!accept(",")) break;
    }
    expect(")");
  }

  // ---- Expressions ----

  ExpressionPtr make(Kind kind, std::string name = "") const {
    auto expression = std::make_unique<Expression>();
    expression->kind = kind;
    expression->line = peek().line;
    expression->name = std::move(name);
    return expression;
  }
  // To be called once an expression has its operands.
  ExpressionPtr grown(ExpressionPtr expression) const {
    for (const auto& operand : expression->operands) {
      if (operand) expression->height = std::max(expression->height, operand->height + 1);
    }
    for (const auto& [name, operand] : expression->named) {
      expression->height = std::max(expression->height, operand->height + 1);
    }
    if (expression->height > kHeightMax) refuse("an expression is too long");
    return expression;
  }
  ExpressionPtr join(Kind kind, std::string name, ExpressionPtr left, ExpressionPtr right) const {
    auto expression = make(kind, std::move(name));
    expression->operands.push_back(std::move(left));
    expression->operands.push_back(std::move(right));
    return grown(std::move(expression));
  }

  ExpressionPtr parse_tuple() {
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

  ExpressionPtr parse_expression() {
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

  ExpressionPtr parse_or() {
    ExpressionPtr left = parse_and();
    while (accept_name("or")) left = join(Kind::kOr, "", std::move(left), parse_and());
    return left;
  }

  ExpressionPtr parse_and() {
    ExpressionPtr left = parse_not();
    while (accept_name("and")) left = join(Kind::kAnd, "", std::move(left), parse_not());
    return left;
  }

  ExpressionPtr parse_not() {
    const Deeper deeper(*this);
    if (!is_name("not")) return parse_compare();
    auto expression = make(Kind::kNot);
    take();
    expression->operands.push_back(parse_not());
    return grown(std::move(expression));
  }

  ExpressionPtr parse_compare() {
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

  ExpressionPtr parse_binary(size_t level) {
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

  ExpressionPtr parse_unary(bool with_filters) {
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

  ExpressionPtr parse_primary() {
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

  ExpressionPtr parse_bracket() {
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

  ExpressionPtr parse_postfix(ExpressionPtr value) {
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

  ExpressionPtr parse_subscript(ExpressionPtr value) {
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

  ExpressionPtr parse_call(ExpressionPtr called) {
    auto call = make(Kind::kCall);
    call->operands.push_back(std::move(called));
    parse_arguments(*call);
    return grown(std::move(call));
  }

  void parse_arguments(Expression& call) {
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

  ExpressionPtr parse_filters(ExpressionPtr value) {
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

  ExpressionPtr parse_one_filter(ExpressionPtr value) {
    auto filter = make(Kind::kFilter);
    filter->name = take_name();
    filter->operands.push_back(std::move(value));
    if (is_operator("(")) parse_arguments(*filter);
    return grown(std::move(filter));
  }

  // Of a filter block and of set: the name comes first, or behind "|".
  ExpressionPtr parse_filter(ExpressionPtr value) {
    accept("|");
    value = parse_one_filter(std::move(value));
    while (accept("|")) value = parse_one_filter(std::move(value));
    return value;
  }

  ExpressionPtr parse_test(ExpressionPtr value) {
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

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0, num_loops_ = 0;
};

}  // namespace

std::vector<Statement> parse_template(std::string_view source) { return Parser(source).parse(); }

}  // namespace pelago::serve
