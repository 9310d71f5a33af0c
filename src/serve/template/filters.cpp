#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include "serve/template/builtins.h"

namespace pelago::serve {

namespace {

using Filter = Value (*)(const Value&, const Arguments&);

Value call_method(const Value& value, const std::string& name, const Arguments& given) {
  return method_of(value.is_string() ? value : Value(value.to_text()), name).call(given);
}

/// item.a.b of "a.b"; undefined where it ends.
Value attribute_of(const Value& item, const std::string& path) {
  Value value = item;
  for (size_t at = 0; at <= path.size();) {
    const size_t end = std::min(path.find('.', at), path.size());
    const Value* found = value.is_dict() ? value.dict().find(path.substr(at, end - at)) : nullptr;
    if (found == nullptr) return Value::undefined(path);
    value = Value(*found);
    at = end + 1;
  }
  return value;
}

Arguments rest_of(const Arguments& given, size_t from) {
  Arguments rest = given;
  rest.positional.erase(rest.positional.begin(),
                        rest.positional.begin() +
                            static_cast<std::ptrdiff_t>(std::min(from, rest.positional.size())));
  return rest;
}

// select, reject, selectattr, rejectattr.
Value choose(const Value& value, const Arguments& given, bool by_attribute, bool wanted) {
  const size_t first = by_attribute ? 1 : 0;
  const Value test = given.get(first, "test");
  const Arguments rest = rest_of(given, first + 1);
  ValueList chosen;
  for (const Value& item : value.items()) {
    const Value subject =
        by_attribute ? attribute_of(item, given.get(0, "attribute").text()) : item;
    const bool fits =
        test.is_undefined() ? subject.is_true() : apply_test(test.text(), subject, rest);
    if (fits == wanted) chosen.push_back(item);
  }
  return chosen;
}

Value map_items(const Value& value, const Arguments& given) {
  ValueList mapped;
  const Value attribute = given.positional.empty() ? given.get(0, "attribute") : Value();
  for (const Value& item : value.items()) {
    if (attribute.is_undefined()) {
      mapped.push_back(apply_filter(given.get(0, "filter").text(), item, rest_of(given, 1)));
      continue;
    }
    Value part = attribute_of(item, attribute.text());
    mapped.push_back(part.is_undefined() ? given.get(SIZE_MAX, "default") : part);
  }
  return mapped;
}

Value join_items(const Value& value, const Arguments& given) {
  const std::string between = given.get(0, "d").to_text();
  const Value attribute = given.get(1, "attribute");
  std::string out;
  bool is_first = true;
  for (const Value& item : value.items()) {
    if (!is_first) out += between;
    is_first = false;
    out += (attribute.is_undefined() ? item : attribute_of(item, attribute.text())).to_text();
    if (out.size() > kTextBytesMax) throw TemplateError("a string grows too long");
  }
  return out;
}

Value sort_items(const Value& value, const Arguments& given) {
  ValueList items = value.items();
  const Value attribute = given.get(SIZE_MAX, "attribute");
  const auto key = [&](const Value& item) {
    Value subject = attribute.is_undefined() ? item : attribute_of(item, attribute.text());
    return subject.is_string() && !given.get(1, "case_sensitive").is_true()
               ? call_method(subject, "lower", {})
               : subject;
  };
  const bool reversed = given.get(0, "reverse").is_true();
  std::stable_sort(items.begin(), items.end(), [&](const Value& a, const Value& b) {
    return reversed ? Value::less(key(b), key(a)) : Value::less(key(a), key(b));
  });
  return items;
}

Value unique_items(const Value& value, const Arguments&) {
  ValueList unique;
  for (const Value& item : value.items()) {
    if (unique.size() > 10000) throw TemplateError("unique: too many items");
    if (std::find(unique.begin(), unique.end(), item) == unique.end()) unique.push_back(item);
  }
  return unique;
}

Value reverse_value(const Value& value, const Arguments&) {
  ValueList items = value.items();
  std::reverse(items.begin(), items.end());
  if (!value.is_string()) return items;
  std::string text;
  for (const Value& item : items) text += item.text();
  return text;
}

Value indent_text(const Value& value, const Arguments& given) {
  const Value width = given.get(0, "width");
  if (width.is_int() && (width.to_int() < 0 || width.to_int() > 1000)) {
    throw TemplateError("indent: a width outside 0 to 1000");
  }
  const std::string margin =
      width.is_string()
          ? width.text()
          : std::string(static_cast<size_t>(width.is_undefined() ? 4 : width.to_int()), ' ');
  const bool first = given.get(1, "first").is_true(), blank = given.get(2, "blank").is_true();
  const std::string& text = value.text();
  std::string out = first ? margin : "";
  for (size_t i = 0; i < text.size(); ++i) {
    out += text[i];
    if (text[i] != '\n') continue;
    const bool is_blank_line = i + 1 < text.size() && text[i + 1] == '\n';
    if (blank || !(is_blank_line || i + 1 == text.size())) out += margin;
    if (out.size() > kTextBytesMax) throw TemplateError("a string grows too long");
  }
  return out;
}

Value to_json_text(const Value& value, const Arguments& given) {
  const Value indent = given.get(0, "indent");
  if (indent.is_int() && (indent.to_int() < 0 || indent.to_int() > 16)) {
    throw TemplateError("tojson: an indent outside 0 to 16");
  }
  return value.to_json(indent.is_int() ? static_cast<int>(indent.to_int()) : -1);
}

Value to_int_or(const Value& value, const Arguments& given) {
  if (value.is_float()) return static_cast<int64_t>(std::clamp(value.to_double(), -9e18, 9e18));
  if (value.is_number()) return value.to_int();
  int64_t number = 0;
  const std::string text(strip_text(value.to_text(), "", true, true));
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc() && end == text.data() + text.size() && !text.empty()) return number;
  const Value otherwise = given.get(0, "default");
  return otherwise.is_undefined() ? Value(int64_t{0}) : otherwise;
}

Value to_float_or(const Value& value, const Arguments& given) {
  if (value.is_number()) return value.to_double();
  double number = 0;
  const std::string text(strip_text(value.to_text(), "", true, true));
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc() && end == text.data() + text.size() && !text.empty()) return number;
  const Value otherwise = given.get(0, "default");
  return otherwise.is_undefined() ? Value(0.0) : otherwise;
}

Value default_value(const Value& value, const Arguments& given) {
  const bool counts_false = given.get(1, "boolean").is_true();
  if (!value.is_undefined() && (!counts_false || value.is_true())) return value;
  const Value otherwise = given.get(0, "default_value");
  return otherwise.is_undefined() ? Value("") : otherwise;
}

Value escape_html(const Value& value, const Arguments&) {
  std::string out;
  for (const char c : value.to_text()) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

Value edge_item(const Value& value, bool first) {
  const ValueList items = value.items();
  if (items.empty()) return Value::undefined("an item of an empty list");
  return first ? items.front() : items.back();
}

Value best_item(const Value& value, bool smallest) {
  const ValueList items = value.items();
  if (items.empty()) return Value::undefined("an item of an empty list");
  return smallest ? *std::min_element(items.begin(), items.end(), Value::less)
                  : *std::max_element(items.begin(), items.end(), Value::less);
}

Value sum_items(const Value& value, const Arguments&) {
  double sum = 0;
  bool is_whole = true;
  for (const Value& item : value.items()) {
    sum += item.to_double();
    is_whole = is_whole && !item.is_float();
  }
  return is_whole && std::abs(sum) < 9e15 ? Value(static_cast<int64_t>(sum)) : Value(sum);
}

Value dict_items(const Value& value, const Arguments& given) {
  if (value.is_undefined()) return ValueList{};
  return method_of(value, "items").call(given);
}

Value sort_dict(const Value& value, const Arguments& given) {
  ValueList items = dict_items(value, {}).list();
  const auto key = [](const Value& item) {
    return call_method(item.list()[0], "lower", {}).text();
  };
  std::stable_sort(
      items.begin(), items.end(), [&](const Value& a, const Value& b) { return key(a) < key(b); });
  if (given.get(2, "reverse").is_true()) std::reverse(items.begin(), items.end());
  return items;
}

Value round_number(const Value& value, const Arguments& given) {
  const Value digits = given.get(0, "precision");
  const double scale =
      std::pow(10.0, digits.is_undefined() ? 0 : std::clamp(digits.to_double(), 0.0, 15.0));
  return std::nearbyint(value.to_double() * scale) / scale;
}

Value absolute(const Value& value, const Arguments&) {
  if (value.is_float()) return std::abs(value.to_double());
  return value.to_int() == INT64_MIN ? value.to_int() : std::abs(value.to_int());
}

const std::map<std::string, Filter>& filters() {
  static const std::map<std::string, Filter> table = {
      {"trim", [](const Value& v, const Arguments& a) { return call_method(v, "strip", a); }},
      {"upper", [](const Value& v, const Arguments& a) { return call_method(v, "upper", a); }},
      {"lower", [](const Value& v, const Arguments& a) { return call_method(v, "lower", a); }},
      {"title", [](const Value& v, const Arguments& a) { return call_method(v, "title", a); }},
      {"capitalize",
       [](const Value& v, const Arguments& a) { return call_method(v, "capitalize", a); }},
      {"replace", [](const Value& v, const Arguments& a) { return call_method(v, "replace", a); }},
      {"length",
       [](const Value& v, const Arguments&) { return Value(static_cast<int64_t>(v.length())); }},
      {"count",
       [](const Value& v, const Arguments&) { return Value(static_cast<int64_t>(v.length())); }},
      {"string", [](const Value& v, const Arguments&) { return Value(v.to_text()); }},
      {"safe", [](const Value& v, const Arguments&) { return v; }},
      {"list", [](const Value& v, const Arguments&) { return Value(v.items()); }},
      {"first", [](const Value& v, const Arguments&) { return edge_item(v, true); }},
      {"last", [](const Value& v, const Arguments&) { return edge_item(v, false); }},
      {"min", [](const Value& v, const Arguments&) { return best_item(v, true); }},
      {"max", [](const Value& v, const Arguments&) { return best_item(v, false); }},
      {"select", [](const Value& v, const Arguments& a) { return choose(v, a, false, true); }},
      {"reject", [](const Value& v, const Arguments& a) { return choose(v, a, false, false); }},
      {"selectattr", [](const Value& v, const Arguments& a) { return choose(v, a, true, true); }},
      {"rejectattr", [](const Value& v, const Arguments& a) { return choose(v, a, true, false); }},
      {"map", map_items},
      {"join", join_items},
      {"sort", sort_items},
      {"unique", unique_items},
      {"reverse", reverse_value},
      {"indent", indent_text},
      {"tojson", to_json_text},
      {"int", to_int_or},
      {"float", to_float_or},
      {"default", default_value},
      {"d", default_value},
      {"escape", escape_html},
      {"e", escape_html},
      {"sum", sum_items},
      {"items", dict_items},
      {"round", round_number},
      {"abs", absolute},
      {"dictsort", sort_dict},
  };
  return table;
}

bool has_case(const Value& value, bool upper) {
  const std::string& text = value.text();
  return text == call_method(value, upper ? "upper" : "lower", {}).text() &&
         text != call_method(value, upper ? "lower" : "upper", {}).text();
}

int64_t remainder_by(const Value& value, int64_t divisor) {
  if (divisor == 0 || divisor == -1) {
    if (divisor == 0) throw TemplateError("divided by 0");
    return 0;
  }
  return value.to_int() % divisor;
}

bool contains(const Value& container, const Value& item) {
  if (container.is_string()) return container.text().find(item.text()) != std::string::npos;
  if (container.is_dict()) return item.is_string() && container.dict().find(item.text()) != nullptr;
  const ValueList items = container.items();
  return std::find(items.begin(), items.end(), item) != items.end();
}

}  // namespace

Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments) {
  const auto found = filters().find(name);
  if (found == filters().end()) throw TemplateError(fmt::format("no filter is called {}", name));
  return found->second(value, arguments);
}

bool is_filter(const std::string& name) { return filters().contains(name); }

bool apply_test(const std::string& name, const Value& value, const Arguments& arguments) {
  const auto other = [&] { return arguments.get(0, "other"); };
  if (name == "defined") return !value.is_undefined();
  if (name == "undefined") return value.is_undefined();
  if (name == "none") return value.is_none();
  if (name == "string") return value.is_string();
  if (name == "boolean") return value.is_bool();
  if (name == "true") return value.is_bool() && value.is_true();
  if (name == "false") return value.is_bool() && !value.is_true();
  if (name == "number") return value.is_number();
  if (name == "integer") return value.is_int();
  if (name == "float") return value.is_float();
  if (name == "mapping") return value.is_dict();
  if (name == "sequence") return value.is_list() || value.is_string() || value.is_dict();
  if (name == "iterable")
    return value.is_list() || value.is_string() || value.is_dict() || value.is_undefined();
  if (name == "callable") return value.is_function();
  if (name == "odd") return remainder_by(value, 2) != 0;
  if (name == "even") return remainder_by(value, 2) == 0;
  if (name == "divisibleby") return remainder_by(value, other().to_int()) == 0;
  if (name == "upper") return has_case(value, true);
  if (name == "lower") return has_case(value, false);
  if (name == "filter") return is_filter(value.text());
  if (name == "eq" || name == "equalto" || name == "==") return value == other();
  if (name == "ne" || name == "!=") return !(value == other());
  if (name == "sameas") return value.type_name() == other().type_name() && value == other();
  if (name == "in") return contains(other(), value);
  if (name == "lt" || name == "lessthan" || name == "<") return Value::less(value, other());
  if (name == "gt" || name == "greaterthan" || name == ">") return Value::less(other(), value);
  if (name == "ge" || name == ">=") return !Value::less(value, other());
  if (name == "le" || name == "<=") return !Value::less(other(), value);
  throw TemplateError(fmt::format("no test is called {}", name));
}

}  // namespace pelago::serve
