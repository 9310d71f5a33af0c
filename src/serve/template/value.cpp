#include "serve/template/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace pelago::serve {

namespace {

std::string format_float(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number < 0 ? "-inf" : "inf";
  std::string text = fmt::format("{}", number);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

// Python takes double quotes only if the text holds single ones and no double ones.
std::string repr_of_text(std::string_view text) {
  const char quote =
      text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos ? '"'
                                                                                            : '\'';
  std::string out(1, quote);
  for (const char c : text) {
    if (c == quote || c == '\\') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\r') {
      out += "\\r";
    } else {
      out += c;
    }
  }
  return out + quote;
}

// A namespace may hold lists, so a list that held one could hold itself.
size_t add_weight(size_t weight, const Value& item) {
  if (item.is_namespace()) throw TemplateError("a namespace cannot be part of another value");
  weight += item.weight();
  if (weight > kWeightMax) throw TemplateError("a value grows too large");
  return weight;
}

[[noreturn]] void refuse_type(const Value& value, std::string_view wanted) {
  if (value.is_undefined()) throw TemplateError(value.to_repr() + " is not defined");
  throw TemplateError(fmt::format("{} where {} is wanted", value.type_name(), wanted));
}

}  // namespace

const Value* ValueDict::find(std::string_view key) const {
  for (const auto& [name, value] : entries) {
    if (name == key) return &value;
  }
  return nullptr;
}

void ValueDict::set(const std::string& key, Value value) {
  for (auto& [name, old] : entries) {
    if (name == key) {
      old = std::move(value);
      return;
    }
  }
  entries.emplace_back(key, std::move(value));
}

Value Arguments::get(size_t place, std::string_view name) const {
  if (place < positional.size()) return positional[place];
  for (const auto& [key, value] : named) {
    if (key == name) return value;
  }
  return Value::undefined(std::string(name));
}

Value::Value(std::string text) : content_(std::make_shared<const std::string>(std::move(text))) {
  if (std::get<Text>(content_)->size() > kTextBytesMax)
    throw TemplateError("a string grows too long");
}

Value::Value(ValueList items) {
  size_t weight = 1;
  for (const Value& item : items) weight = add_weight(weight, item);
  content_ = std::make_shared<const Weighed<ValueList>>(
      Weighed<ValueList>{.content = std::move(items), .weight = weight});
}

Value::Value(ValueDict dict) {
  size_t weight = 1;
  for (const auto& [key, item] : dict.entries)
    weight = add_weight(weight + 1 + key.size() / 16, item);
  content_ = std::make_shared<const Weighed<ValueDict>>(
      Weighed<ValueDict>{.content = std::move(dict), .weight = weight});
}

size_t Value::weight() const {
  if (is_string()) return 1 + text().size() / 16;
  if (is_list()) return std::get<List>(content_)->weight;
  if (is<Dict>()) return std::get<Dict>(content_)->weight;
  return 1;
}

Value::Value(Function function) : content_(std::make_shared<const Function>(std::move(function))) {}
Value Value::make_namespace(ValueDict dict) {
  Value value;
  value.content_ = std::make_shared<ValueDict>(std::move(dict));
  return value;
}

const std::string& Value::text() const {
  if (!is_string()) refuse_type(*this, "a string");
  return *std::get<Text>(content_);
}

const ValueList& Value::list() const {
  if (!is_list()) refuse_type(*this, "a list");
  return std::get<List>(content_)->content;
}

const ValueDict& Value::dict() const {
  if (is_namespace()) return *std::get<Namespace>(content_);
  if (!is_dict()) refuse_type(*this, "a mapping");
  return std::get<Dict>(content_)->content;
}

ValueDict& Value::namespace_dict() const {
  if (!is_namespace()) refuse_type(*this, "a namespace");
  return *std::get<Namespace>(content_);
}

Value Value::call(const Arguments& arguments) const {
  if (!is_function()) refuse_type(*this, "something to call");
  return (*std::get<Shared>(content_))(arguments);
}

int64_t Value::to_int() const {
  if (is_int()) return std::get<int64_t>(content_);
  if (is_bool()) return std::get<bool>(content_) ? 1 : 0;
  refuse_type(*this, "a whole number");
}

double Value::to_double() const {
  if (is_float()) return std::get<double>(content_);
  if (is_int() || is_bool()) return static_cast<double>(to_int());
  refuse_type(*this, "a number");
}

bool Value::is_true() const {
  if (is_bool()) return std::get<bool>(content_);
  if (is_int()) return to_int() != 0;
  if (is_float()) return to_double() != 0;
  if (is_string()) return !text().empty();
  if (is_list()) return !list().empty();
  if (is_namespace()) return true;
  if (is_dict()) return !dict().entries.empty();
  return is_function();
}

size_t Value::length() const {
  if (is_string()) return characters_of(text()).size();
  if (is_list()) return list().size();
  if (is_undefined()) return 0;
  return dict().entries.size();
}

ValueList Value::items() const {
  if (is_list()) return list();
  ValueList items;
  if (is_string()) {
    for (const std::string_view character : characters_of(text())) items.emplace_back(character);
  } else if (is_dict()) {
    for (const auto& [key, value] : dict().entries) items.emplace_back(key);
  } else if (!is_undefined()) {
    refuse_type(*this, "something to go through");
  }
  return items;
}

std::string Value::to_text() const {
  if (is_string()) return text();
  if (is_undefined()) return "";
  return to_repr();
}

std::string Value::to_repr() const {
  if (is_undefined()) return std::get<Undefined>(content_).name;
  if (is_none()) return "None";
  if (is_bool()) return is_true() ? "True" : "False";
  if (is_int()) return std::to_string(to_int());
  if (is_float()) return format_float(to_double());
  if (is_string()) return repr_of_text(text());
  if (is_function()) return "<function>";
  if (is_namespace()) return "<Namespace>";
  std::string out;
  if (is_list()) {
    for (const Value& item : list()) out += (out.empty() ? "" : ", ") + item.to_repr();
    return '[' + out + ']';
  }
  for (const auto& [key, value] : dict().entries) {
    out += (out.empty() ? "" : ", ") + repr_of_text(key) + ": " + value.to_repr();
  }
  return '{' + out + '}';
}

std::string_view Value::type_name() const {
  if (is_undefined()) return "something undefined";
  if (is_none()) return "none";
  if (is_bool()) return "a boolean";
  if (is_number()) return "a number";
  if (is_string()) return "a string";
  if (is_list()) return "a list";
  return is_dict() ? "a mapping" : "a function";
}

bool operator==(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (!a.is_float() && !b.is_float()) return a.to_int() == b.to_int();
    return a.to_double() == b.to_double();
  }
  if (a.is_string() && b.is_string()) return a.text() == b.text();
  if (a.is_list() && b.is_list()) return a.list() == b.list();
  if (a.is_namespace() || b.is_namespace()) return false;
  if (a.is_dict() && b.is_dict()) {
    const auto& entries = a.dict().entries;
    return entries.size() == b.dict().entries.size() &&
           std::all_of(entries.begin(), entries.end(), [&](const auto& entry) {
             const Value* other = b.dict().find(entry.first);
             return other != nullptr && entry.second == *other;
           });
  }
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

bool Value::less(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return a.to_double() < b.to_double();
  if (a.is_string() && b.is_string()) return a.text() < b.text();
  if (a.is_list() && b.is_list()) {
    return std::lexicographical_compare(
        a.list().begin(), a.list().end(), b.list().begin(), b.list().end(), less);
  }
  throw TemplateError(fmt::format("{} and {} have no order", a.type_name(), b.type_name()));
}

std::vector<std::string_view> characters_of(std::string_view text) {
  std::vector<std::string_view> characters;
  characters.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const size_t wanted = lead < 0x80    ? 1
                          : lead >= 0xf0 ? 4
                          : lead >= 0xe0 ? 3
                          : lead >= 0xc0 ? 2
                                         : 1;
    size_t length = 1;
    while (length < wanted && i + length < text.size() && (text[i + length] & 0xc0) == 0x80)
      ++length;
    characters.push_back(text.substr(i, length));
    i += length;
  }
  return characters;
}

}  // namespace pelago::serve
