// Values from JSON, and as JSON, in the form that Python's json gives them.
#include <fmt/format.h>

#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/text/json.h"
#include "serve/template/value.h"

namespace pelago::serve {

namespace {

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

}  // namespace

Value value_of_json(std::string_view text, const JsonLimits& limits) {
  Builder builder(limits);
  if (!nlohmann::json::sax_parse(text, &builder)) throw TemplateError(builder.problem_);
  return builder.result_;
}

std::string Value::to_json(int indent) const {
  std::string out;
  append_json(out, *this, indent, 0);
  return out;
}

std::string json_quoted(std::string_view text) {
  std::string out;
  append_json_string(out, text);
  return out;
}

}  // namespace pelago::serve
