// Walks through the tree. Scopes are Jinja2's: a loop's body and a macro have their own, so that a
// set inside them is not seen outside; only a namespace carries a value out.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "serve/template/builtins.h"
#include "serve/template/operators.h"
#include "serve/template/syntax/syntax.h"
#include "serve/template/template.h"

namespace pelago::serve {

namespace {

using Kind = Expression::Kind;

struct Scope {
  const Scope* parent = nullptr;
  std::vector<std::pair<std::string, Value>> names = {};

  const Value* find(const std::string& name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->parent) {
      for (auto it = scope->names.rbegin(); it != scope->names.rend(); ++it) {
        if (it->first == name) return &it->second;
      }
    }
    return nullptr;
  }
  void set(const std::string& name, Value value) {
    for (auto& [key, old] : names) {
      if (key == name) {
        old = std::move(value);
        return;
      }
    }
    names.emplace_back(name, std::move(value));
  }
};

class Renderer {
 public:
  Renderer(const ValueDict& variables, int64_t now_s, const RenderLimits& limits)
      : now_s_(now_s), limits_(limits) {
    root_.names = variables.entries;
  }

  std::string run(const std::vector<Statement>& body) {
    execute(body, root_);
    return std::move(out_);
  }

 private:
  enum class Flow { kNext, kBreak, kContinue };

  void step(int line) {
    if (++num_steps_ > limits_.num_steps_max) {
      throw TemplateError(fmt::format("template line {}: too much work", line));
    }
  }
  // What makes much in one step has done more than a step's work.
  Value charged(Value made) {
    if (made.is_list()) num_steps_ += static_cast<int64_t>(made.list().size() / 4);
    if (made.is_string()) num_steps_ += static_cast<int64_t>(made.text().size() / 64);
    return made;
  }
  void print(std::string_view text) {
    out_ += text;
    if (out_.size() > limits_.output_bytes_max) throw TemplateError("the prompt grows too long");
  }

  // ---- Statements ----

  Flow execute(const std::vector<Statement>& body, Scope& scope) {
    for (const Statement& statement : body) {
      step(statement.line);
      const Flow flow = execute(statement, scope);
      if (flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  Flow execute(const Statement& statement, Scope& scope) {
    switch (statement.kind) {
      case Statement::Kind::kText:
        print(statement.text);
        break;
      case Statement::Kind::kOutput:
        print(evaluate(*statement.expression, scope).to_text());
        break;
      case Statement::Kind::kIf:
        return execute(
            evaluate(*statement.expression, scope).is_true() ? statement.body : statement.otherwise,
            scope);
      case Statement::Kind::kFor:
        return loop(statement, scope);
      case Statement::Kind::kSet:
        set(statement, scope);
        break;
      case Statement::Kind::kMacro:
        scope.set(statement.text, macro(statement));
        break;
      case Statement::Kind::kCallBlock: {
        Arguments arguments = arguments_of(*statement.expression, scope);
        const Value callee = evaluate(*statement.expression->operands[0], scope);
        caller_ = macro(statement);
        print(callee.call(arguments).to_text());
        break;
      }
      case Statement::Kind::kFilterBlock:
        print(
            filter(*statement.expression, Value(captured(statement.body, scope)), scope).to_text());
        break;
      case Statement::Kind::kGroup:
        return execute(statement.body, scope);
      case Statement::Kind::kBreak:
        return Flow::kBreak;
      case Statement::Kind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kNext;
  }

  // What body prints.
  std::string captured(const std::vector<Statement>& body, Scope& scope) {
    std::string outer = std::move(out_);
    out_.clear();
    execute(body, scope);
    std::swap(outer, out_);
    return outer;
  }

  void assign(const std::vector<std::string>& targets, const Value& value, Scope& scope) {
    if (targets.size() == 1) return assign_one(targets[0], value, scope);
    const ValueList parts = value.items();
    if (parts.size() != targets.size()) {
      throw TemplateError(fmt::format("{} values for {} names", parts.size(), targets.size()));
    }
    for (size_t i = 0; i < parts.size(); ++i) assign_one(targets[i], parts[i], scope);
  }

  void assign_one(const std::string& target, const Value& value, Scope& scope) {
    const size_t dot = target.find('.');
    if (dot == std::string::npos) return scope.set(target, value);
    const Value* owner = scope.find(target.substr(0, dot));
    if (owner == nullptr)
      throw TemplateError(fmt::format("{} is not defined", target.substr(0, dot)));
    if (value.is_namespace()) throw TemplateError("a namespace cannot be part of another value");
    owner->namespace_dict().set(target.substr(dot + 1), value);
  }

  void set(const Statement& statement, Scope& scope) {
    if (statement.expression) {
      return assign(statement.targets, evaluate(*statement.expression, scope), scope);
    }
    Value text(captured(statement.body, scope));
    if (statement.condition) text = filter(*statement.condition, text, scope);
    assign(statement.targets, text, scope);
  }

  Flow loop(const Statement& statement, Scope& scope) {
    ValueList items = evaluate(*statement.expression, scope).items();
    if (statement.condition) {
      std::erase_if(items, [&](const Value& item) {
        Scope inner{.parent = &scope};
        assign(statement.targets, item, inner);
        return !evaluate(*statement.condition, inner).is_true();
      });
    }
    if (items.empty()) return execute(statement.otherwise, scope);
    for (size_t i = 0; i < items.size(); ++i) {
      step(statement.line);
      Scope inner{.parent = &scope};
      inner.set("loop", loop_variable(items, i));
      assign(statement.targets, items[i], inner);
      if (execute(statement.body, inner) == Flow::kBreak) break;
    }
    return Flow::kNext;
  }

  static Value loop_variable(const ValueList& items, size_t i) {
    const auto num_items = static_cast<int64_t>(items.size());
    const auto idx = static_cast<int64_t>(i);
    ValueDict loop;
    loop.entries = {{"index", idx + 1},
                    {"index0", idx},
                    {"revindex", num_items - idx},
                    {"revindex0", num_items - idx - 1},
                    {"first", idx == 0},
                    {"last", idx + 1 == num_items},
                    {"length", num_items},
                    {"previtem", i > 0 ? items[i - 1] : Value()},
                    {"nextitem", i + 1 < items.size() ? items[i + 1] : Value()}};
    loop.entries.emplace_back("cycle", Function([i](const Arguments& given) {
                                if (given.positional.empty())
                                  throw TemplateError("cycle: nothing to choose from");
                                return given.positional[i % given.positional.size()];
                              }));
    return loop;
  }

  // Macros see what the whole template sees, besides their arguments. The renderer and the tree
  // outlive all values.
  Value macro(const Statement& statement) {
    return Function([this, &statement](const Arguments& given) {
      if (++depth_ > limits_.depth_max) throw TemplateError("macros call each other too deep");
      Scope inner{.parent = &root_};
      if (!caller_.is_undefined()) inner.set("caller", std::exchange(caller_, Value()));
      for (size_t i = 0; i < statement.targets.size(); ++i) {
        Value value = given.get(i, statement.targets[i]);
        if (value.is_undefined() && statement.defaults[i])
          value = evaluate(*statement.defaults[i], inner);
        inner.set(statement.targets[i], value);
      }
      Value text(captured(statement.body, inner));
      --depth_;
      return text;
    });
  }

  // ---- Expressions ----

  Value evaluate(const Expression& expression, const Scope& scope) {
    step(expression.line);
    try {
      return evaluate_kind(expression, scope);
    } catch (const TemplateError& error) {
      if (is_located_) throw;
      is_located_ = true;
      throw TemplateError(fmt::format("{} (template line {})", error.what(), expression.line));
    }
  }

  Value evaluate_kind(const Expression& expression, const Scope& scope) {
    const auto operand = [&](size_t i) { return evaluate(*expression.operands[i], scope); };
    switch (expression.kind) {
      case Kind::kLiteral:
        return expression.value;
      case Kind::kName: {
        const Value* found = scope.find(expression.name);
        return found != nullptr ? *found : global_function(expression.name, now_s_);
      }
      case Kind::kList: {
        ValueList items;
        for (size_t i = 0; i < expression.operands.size(); ++i) items.push_back(operand(i));
        return items;
      }
      case Kind::kDict: {
        ValueDict dict;
        for (size_t i = 0; i + 1 < expression.operands.size(); i += 2) {
          dict.set(operand(i).to_text(), operand(i + 1));
        }
        return dict;
      }
      case Kind::kAttribute:
        return member_of(operand(0), expression.name);
      case Kind::kIndex:
        return item_of(operand(0), operand(1));
      case Kind::kSlice:
        return slice(expression, scope);
      case Kind::kCall: {
        const Value callee = operand(0);
        return charged(callee.call(arguments_of(expression, scope)));
      }
      case Kind::kFilter:
        return charged(filter(expression, operand(0), scope));
      case Kind::kTest:
        return test(expression, scope);
      case Kind::kNot:
        return !operand(0).is_true();
      case Kind::kNegative:
        return negative_of(operand(0));
      case Kind::kBinary:
        return charged(apply_operator(expression.name, operand(0), operand(1)));
      case Kind::kAnd: {
        Value left = operand(0);
        return left.is_true() ? operand(1) : left;
      }
      case Kind::kOr: {
        Value left = operand(0);
        return left.is_true() ? left : operand(1);
      }
      case Kind::kChoice:
        if (operand(1).is_true()) return operand(0);
        return expression.operands[2] ? operand(2) : Value();
    }
    return {};
  }

  Arguments arguments_of(const Expression& expression, const Scope& scope) {
    Arguments arguments;
    for (size_t i = 1; i < expression.operands.size(); ++i) {
      arguments.positional.push_back(evaluate(*expression.operands[i], scope));
    }
    for (const auto& [name, value] : expression.named) {
      arguments.named.emplace_back(name, evaluate(*value, scope));
    }
    return arguments;
  }

  // In a filter block the innermost operand is an empty place for what the body printed.
  Value filter(const Expression& expression, const Value& value, const Scope& scope) {
    Value subject = value;
    const Expression& inner = *expression.operands[0];
    if (inner.kind == Kind::kFilter && in_block_filter(expression))
      subject = filter(inner, value, scope);
    return apply_filter(expression.name, subject, arguments_of(expression, scope));
  }
  static bool in_block_filter(const Expression& expression) {
    const Expression* at = &expression;
    while (at->kind == Kind::kFilter) at = at->operands[0].get();
    return at->kind == Kind::kLiteral && at->value.is_undefined();
  }

  Value test(const Expression& expression, const Scope& scope) {
    return apply_test(
        expression.name, evaluate(*expression.operands[0], scope), arguments_of(expression, scope));
  }

  Value slice(const Expression& expression, const Scope& scope) {
    const Value value = evaluate(*expression.operands[0], scope);
    const auto part = [&](size_t i, int64_t otherwise) {
      if (!expression.operands[i]) return otherwise;
      const Value given = evaluate(*expression.operands[i], scope);
      return given.is_none() ? otherwise : std::clamp(given.to_int(), -kIntMax, kIntMax);
    };
    const ValueList items = value.items();
    const auto length = static_cast<int64_t>(items.size());
    const int64_t step = part(3, 1);
    if (step == 0) throw TemplateError("a slice with a step of 0");
    const auto place = [&](size_t i, int64_t otherwise) {
      int64_t at = part(i, INT64_MIN);
      if (at == INT64_MIN) return otherwise;
      if (at < 0) at += length;
      return step > 0 ? std::clamp<int64_t>(at, 0, length)
                      : std::clamp<int64_t>(at, -1, length - 1);
    };
    const int64_t start = place(1, step > 0 ? 0 : length - 1);
    const int64_t stop = place(2, step > 0 ? length : -1);
    ValueList chosen;
    for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step) {
      chosen.push_back(items[static_cast<size_t>(i)]);
    }
    if (!value.is_string()) return chosen;
    std::string text;
    for (const Value& character : chosen) text += character.text();
    return text;
  }

  const int64_t now_s_;
  const RenderLimits limits_;
  Scope root_;
  Value caller_;  // of the call block that is about to call a macro
  std::string out_;
  int64_t num_steps_ = 0;
  int depth_ = 0;
  bool is_located_ = false;
};

}  // namespace

Template::Template(std::string_view source) : body_(parse_template(source)) {}
Template::Template(Template&&) noexcept = default;
Template& Template::operator=(Template&&) noexcept = default;
Template::~Template() = default;

std::string Template::render(const ValueDict& variables,
                             int64_t now_s,
                             const RenderLimits& limits) const {
  return Renderer(variables, now_s, limits).run(body_);
}

}  // namespace pelago::serve
