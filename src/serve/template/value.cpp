#include "serve/template/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "base/text/json.h"

namespace pelago::serve {

namespace {

std::string format_float(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number < 0 ? "-inf" : "inf";
  std::string text = fmt::format("{}", number);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

// The bytes of the character that text begins with; 0 if it is not UTF-8 (overlong forms, halves of
// surrogate pairs and what lies past U+10FFFF are not).
size_t character_bytes(std::string_view text) {
  const auto byte = [&](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U;
  };
  const auto follows = [&](size_t i) { return (byte(i) & 0xc0) == 0x80; };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead < 0xe0) return follows(1) ? 2 : 0;
  if (lead >= 0xe0 && lead < 0xf0) {
    const bool is_odd = (lead == 0xe0 && byte(1) < 0xa0) || (lead == 0xed && byte(1) >= 0xa0);
    return follows(1) && follows(2) && !is_odd ? 3 : 0;
  }
  if (lead >= 0xf0 && lead < 0xf5) {
    const bool is_odd = (lead == 0xf0 && byte(1) < 0x90) || (lead == 0xf4 && byte(1) >= 0x90);
    return follows(1) && follows(2) && follows(3) && !is_odd ? 4 : 0;
  }
  return 0;
}

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 32) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
        } else if ((c & 0x80) == 0) {
          out += c;
        } else {
          const size_t length = character_bytes(text.substr(i));
          out += length > 0 ? text.substr(i, length) : "\ufffd";
          i += length > 0 ? length - 1 : 0;
        }
    }
  }
  out += '"';
}

void append_json(std::string& out, const Value& value, int indent, int depth) {
  const auto newline = [&](int level) {
    if (indent < 0) return;
    out += '\n';
    out.append(static_cast<size_t>(indent * level), ' ');
  };
  const std::string_view comma = indent < 0 ? ", " : ",";
  if (value.is_string()) {
    append_json_string(out, value.text());
  } else if (value.is_list()) {
    out += '[';
    bool is_first = true;
    for (const Value& item : value.list()) {
      if (!is_first) out += comma;
      is_first = false;
      newline(depth + 1);
      append_json(out, item, indent, depth + 1);
    }
    if (!is_first) newline(depth);
    out += ']';
  } else if (value.is_dict() && !value.is_namespace()) {
    out += '{';
    bool is_first = true;
    for (const auto& [key, item] : value.dict().entries) {
      if (!is_first) out += comma;
      is_first = false;
      newline(depth + 1);
      append_json_string(out, key);
      out += ": ";
      append_json(out, item, indent, depth + 1);
    }
    if (!is_first) newline(depth);
    out += '}';
  } else if (value.is_none()) {
    out += "null";
  } else if (value.is_bool()) {
    out += value.is_true() ? "true" : "false";
  } else if (value.is_number()) {
    out += value.to_text();
  } else {
    throw TemplateError(fmt::format("{} cannot be written as JSON", value.type_name()));
  }
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

/// Builds values straight from the parser's events: keys keep their order, and what is too deep or
/// too much stops the parser at once.
class Builder {
 public:
  explicit Builder(const JsonLimits& limits) : limits_(limits) {}

  bool null() { return put(Value::None{}); }
  bool boolean(bool truth) { return put(truth); }
  bool number_integer(int64_t number) { return put(number); }
  bool number_unsigned(uint64_t number) {
    return number <= INT64_MAX ? put(static_cast<int64_t>(number))
                               : put(static_cast<double>(number));
  }
  bool number_float(double number, const std::string&) { return put(number); }
  bool string(std::string& text) { return put(std::move(text)); }
  bool binary(nlohmann::json::binary_t&) { return false; }
  bool start_object(size_t) { return open(false); }
  bool start_array(size_t) { return open(true); }
  bool key(std::string& text) {
    open_.back().keys.push_back(std::move(text));
    return true;
  }
  bool end_array() {
    ValueList items = std::move(open_.back().items);
    open_.pop_back();
    return put(std::move(items));
  }
  bool end_object() {
    Open last = std::move(open_.back());
    open_.pop_back();
    ValueDict dict;
    std::unordered_map<std::string_view, size_t> places;
    for (size_t i = 0; i < last.keys.size(); ++i) {
      const auto [place, is_new] = places.emplace(last.keys[i], dict.entries.size());
      if (is_new) {
        dict.entries.emplace_back(last.keys[i], std::move(last.items[i]));
      } else {
        dict.entries[place->second].second = std::move(last.items[i]);
      }
    }
    return put(std::move(dict));
  }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& error) {
    problem_ = error.what();
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    if (const size_t at = problem_.find("] "); at != std::string::npos) problem_.erase(0, at + 2);
    return false;
  }

  Value result_;
  std::string problem_;

 private:
  struct Open {
    bool is_array = false;
    std::vector<std::string> keys;
    ValueList items;
  };
  bool open(bool is_array) {
    if (open_.size() >= limits_.depth_max) {
      problem_ = fmt::format("nested deeper than {}", limits_.depth_max);
      return false;
    }
    open_.push_back({.is_array = is_array, .keys = {}, .items = {}});
    return true;
  }
  bool put(Value value) {
    if (++num_values_ > limits_.num_values_max) {
      problem_ = fmt::format("more than {} values", limits_.num_values_max);
      return false;
    }
    if (open_.empty()) {
      result_ = std::move(value);
    } else {
      open_.back().items.push_back(std::move(value));
    }
    return true;
  }

  const JsonLimits limits_;
  std::vector<Open> open_;
  size_t num_values_ = 0;
};

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

Value value_of_json(std::string_view text, const JsonLimits& limits) {
  Builder builder(limits);
  if (!nlohmann::json::sax_parse(text, &builder)) throw TemplateError(builder.problem_);
  return builder.result_;
}

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

std::string Value::to_json(int indent) const {
  std::string out;
  append_json(out, *this, indent, 0);
  return out;
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

std::string json_quoted(std::string_view text) {
  std::string out;
  append_json_string(out, text);
  return out;
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
