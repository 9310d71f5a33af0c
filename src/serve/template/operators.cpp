#include "serve/template/operators.h"

#include <fmt/format.h>

#include <cmath>
#include <string>

#include "serve/template/builtins.h"

namespace pelago::serve {

namespace {

void check_defined(const Value& value, const std::string& what) {
  if (!value.is_undefined()) return;
  throw TemplateError(fmt::format("{} of {}, which is not defined", what, value.to_repr()));
}

Value whole(double number) {
  if (std::abs(number) > static_cast<double>(kIntMax))
    throw TemplateError("a number grows too large");
  return static_cast<int64_t>(number);
}

std::string joined(const std::string& a, const std::string& b) {
  if (a.size() + b.size() > kTextBytesMax) throw TemplateError("a string grows too long");
  return a + b;
}

std::string repeated(const std::string& text, int64_t count) {
  if (count <= 0 || text.empty()) return "";
  if (static_cast<uint64_t>(count) > kTextBytesMax / text.size())
    throw TemplateError("a string grows too long");
  std::string out;
  for (int64_t i = 0; i < count; ++i) out += text;
  return out;
}

Value arithmetic(const std::string& name, const Value& a, const Value& b) {
  const double x = a.to_double(), y = b.to_double();
  const bool is_whole = !a.is_float() && !b.is_float();
  const auto result = [&](double number) { return is_whole ? whole(number) : Value(number); };
  if (name == "+") return result(x + y);
  if (name == "-") return result(x - y);
  if (name == "*") return result(x * y);
  if (name == "**") return is_whole && y >= 0 ? whole(std::pow(x, y)) : Value(std::pow(x, y));
  if (y == 0) throw TemplateError("divided by 0");
  if (name == "/") return x / y;
  if (name == "//") return result(std::floor(x / y));
  return result(x - std::floor(x / y) * y);
}

}  // namespace

Value member_of(const Value& value, const std::string& name) {
  check_defined(value, name);
  if (Value method = method_of(value, name); !method.is_undefined()) return method;
  const Value* found = value.is_dict() ? value.dict().find(name) : nullptr;
  return found != nullptr ? *found : Value::undefined(name);
}

Value item_of(const Value& value, const Value& place) {
  check_defined(value, place.to_repr());
  if (value.is_dict()) {
    const Value* found =
        place.is_string() || place.is_number() ? value.dict().find(place.to_text()) : nullptr;
    return found != nullptr ? *found : Value::undefined(place.to_text());
  }
  if (place.is_string()) return member_of(value, place.text());
  if (!value.is_list() && !value.is_string()) return Value::undefined(place.to_repr());
  const auto length = static_cast<int64_t>(value.length());
  int64_t at = place.to_int();
  if (at < 0) at += length;
  if (at < 0 || at >= length) return Value::undefined(fmt::format("item {}", place.to_repr()));
  if (value.is_list()) return value.list()[static_cast<size_t>(at)];
  return characters_of(value.text())[static_cast<size_t>(at)];
}

Value negative_of(const Value& value) {
  if (value.is_float()) return -value.to_double();
  return whole(-static_cast<double>(value.to_int()));
}

Value apply_operator(const std::string& name, const Value& a, const Value& b) {
  if (name == "==") return a == b;
  if (name == "!=") return !(a == b);
  if (name == "<") return Value::less(a, b);
  if (name == ">") return Value::less(b, a);
  if (name == "<=") return !Value::less(b, a);
  if (name == ">=") return !Value::less(a, b);
  if (name == "in" || name == "not in") {
    Arguments container;
    container.positional = {b};
    return apply_test("in", a, container) == (name == "in");
  }
  if (name == "~") return joined(a.to_text(), b.to_text());
  if (name == "+" && a.is_string() && b.is_string()) return joined(a.text(), b.text());
  if (name == "+" && a.is_list() && b.is_list()) {
    ValueList both = a.list();
    both.insert(both.end(), b.list().begin(), b.list().end());
    return both;
  }
  if (name == "*" && a.is_string()) return repeated(a.text(), b.to_int());
  if (name == "%" && a.is_string()) throw TemplateError("'%' between strings is not supported");
  return arithmetic(name, a, b);
}

}  // namespace pelago::serve
