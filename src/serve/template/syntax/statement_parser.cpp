// The statements of a template, by recursive descent.
#include <fmt/format.h>

#include <set>
#include <string>
#include <utility>

#include "serve/template/syntax/expression_parser.h"

namespace pelago::serve {

namespace {

class StatementParser : ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  std::vector<Statement> parse() { return parse_body({}); }

 private:
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

  int num_loops_ = 0;
};

}  // namespace

std::vector<Statement> parse_template(std::string_view source) {
  return StatementParser(source).parse();
}

}  // namespace pelago::serve
