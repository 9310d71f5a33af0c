// A template as it was written: the tree that parsing makes and rendering walks through.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "serve/template/value.h"

namespace pelago::serve {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Expression {
  enum class Kind {
    kLiteral,    // value
    kName,       // name
    kList,       // operands
    kDict,       // operands: key, value, key, value
    kAttribute,  // operands[0].name
    kIndex,      // operands[0][operands[1]]
    kSlice,      // operands[0][operands[1]:operands[2]:operands[3]], null where left out
    kCall,       // operands[0](operands[1]..., named...)
    kFilter,     // operands[0] | name(operands[1]..., named...)
    kTest,       // operands[0] is name(operands[1]...)
    kNot,
    kNegative,
    kBinary,  // operands[0] name operands[1]
    kAnd,
    kOr,
    kChoice,  // operands[0] if operands[1] else operands[2], null where left out
  };
  Kind kind = Kind::kLiteral;
  int line = 0;
  int height = 1;  // of the tree below
  std::string name;
  Value value;
  std::vector<ExpressionPtr> operands;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
};

struct Statement {
  enum class Kind {
    kText,         // text
    kOutput,       // expression
    kIf,           // expression, body, otherwise
    kFor,          // targets in expression if condition: body; otherwise if there was nothing
    kSet,          // targets = expression, or = what body prints where there is none
    kMacro,        // text(targets = defaults): body
    kCallBlock,    // expression is called with body as caller(targets)
    kFilterBlock,  // expression is a filter whose operands[0] is what body prints
    kGroup,        // body
    kBreak,
    kContinue,
  };
  Kind kind = Kind::kText;
  int line = 0;
  std::string text;
  ExpressionPtr expression, condition;
  std::vector<std::string> targets;  // "name", or "name.attribute" of a namespace
  std::vector<ExpressionPtr> defaults;
  std::vector<Statement> body, otherwise;
};

struct Token {
  enum class Kind {
    kText,
    kBlockBegin,
    kBlockEnd,
    kOutputBegin,
    kOutputEnd,
    kName,
    kString,
    kNumber,
    kOperator,
    kEnd
  };
  Kind kind = Kind::kEnd;
  int line = 0;
  std::string text;
  Value value = {};  // of kNumber
};

/// Cuts a template into tokens; line breaks and blanks around tags go as Jinja2 has it with
/// trim_blocks and lstrip_blocks, which is how chat templates are rendered. Throws TemplateError.
std::vector<Token> tokenize_template(std::string_view source);

/// Throws TemplateError with the line.
std::vector<Statement> parse_template(std::string_view source);

}  // namespace pelago::serve
