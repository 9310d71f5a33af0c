// A place in a template's tokens: what the parsers look at, take and miss.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "serve/template/syntax/syntax.h"

namespace pelago::serve {

class TokenCursor {
 public:
  explicit TokenCursor(std::string_view source) : tokens_(tokenize_template(source)) {}

 protected:
  /// Held by whatever calls itself.
  class Deeper {
   public:
    explicit Deeper(TokenCursor& cursor) : cursor_(cursor) {
      if (++cursor_.depth_ > kDepthMax) cursor_.refuse("nested too deep");
    }
    ~Deeper() { --cursor_.depth_; }

   private:
    TokenCursor& cursor_;
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

 private:
  static constexpr int kDepthMax = 200;  // of parentheses and blocks
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace pelago::serve
