#include <fmt/format.h>

#include <algorithm>
#include <ctime>

#include "serve/template/builtins.h"

namespace pelago::serve {

namespace {

constexpr std::string_view kBlanks = " \t\n\r\f\v";
constexpr int64_t kRangeMax = 1'000'000;

std::string change_case(std::string_view text, bool to_upper) {
  std::string out(text);
  for (char& c : out) {
    if (to_upper && c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
    if (!to_upper && c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

std::string title_case(std::string_view text) {
  std::string out = change_case(text, false);
  bool is_start = true;
  for (char& c : out) {
    const bool is_letter = (c >= 'a' && c <= 'z') || (c & 0x80) != 0;
    if (is_start && is_letter) c = change_case(std::string_view(&c, 1), true)[0];
    is_start = !is_letter;
  }
  return out;
}

ValueList split_blanks(std::string_view text, int64_t num_max) {
  ValueList parts;
  size_t at = text.find_first_not_of(kBlanks);
  while (at != std::string_view::npos) {
    if (num_max >= 0 && static_cast<int64_t>(parts.size()) == num_max) {
      parts.emplace_back(strip_text(text.substr(at), "", false, true));
      break;
    }
    const size_t end = std::min(text.find_first_of(kBlanks, at), text.size());
    parts.emplace_back(text.substr(at, end - at));
    at = text.find_first_not_of(kBlanks, end);
  }
  return parts;
}

ValueList split(std::string_view text, const Arguments& arguments, bool from_right) {
  const Value separator = arguments.get(0, "sep");
  const Value most = arguments.get(1, "maxsplit");
  const int64_t num_max = most.is_undefined() ? -1 : most.to_int();
  if (separator.is_undefined() || separator.is_none()) return split_blanks(text, num_max);
  const std::string& between = separator.text();
  if (between.empty()) throw TemplateError("split by an empty string");
  ValueList parts;
  const auto is_done = [&] {
    return num_max >= 0 && static_cast<int64_t>(parts.size()) >= num_max;
  };
  if (from_right) {
    while (!is_done()) {
      const size_t at = text.rfind(between);
      if (at == std::string_view::npos) break;
      parts.emplace_back(text.substr(at + between.size()));
      text = text.substr(0, at);
    }
    parts.emplace_back(text);
    std::reverse(parts.begin(), parts.end());
    return parts;
  }
  while (!is_done()) {
    const size_t at = text.find(between);
    if (at == std::string_view::npos) break;
    parts.emplace_back(text.substr(0, at));
    text.remove_prefix(at + between.size());
  }
  parts.emplace_back(text);
  return parts;
}

ValueList split_lines(std::string_view text, bool keep_ends) {
  ValueList lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    lines.emplace_back(text.substr(0, keep_ends ? std::min(end + 1, text.size()) : end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

// startswith and endswith take one string or several.
bool has_edge(std::string_view text, const Value& edges, bool at_start) {
  const ValueList one = {edges};
  for (const Value& edge : edges.is_list() ? edges.list() : one) {
    if (at_start ? text.starts_with(edge.text()) : text.ends_with(edge.text())) return true;
  }
  return false;
}

int64_t count_text(std::string_view text, std::string_view part) {
  if (part.empty()) return static_cast<int64_t>(characters_of(text).size()) + 1;
  int64_t count = 0;
  for (size_t at = text.find(part); at != std::string_view::npos;
       at = text.find(part, at + part.size()))
    ++count;
  return count;
}

Value find_text(std::string_view text, const Value& part, bool from_right) {
  const size_t at = from_right ? text.rfind(part.text()) : text.find(part.text());
  if (at == std::string_view::npos) return int64_t{-1};
  return static_cast<int64_t>(characters_of(text.substr(0, at)).size());
}

bool all_of_kind(std::string_view text, std::string_view kind) {
  const auto fits = [&](char c) {
    const bool is_digit = c >= '0' && c <= '9';
    const bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c & 0x80) != 0;
    if (kind == "isdigit" || kind == "isnumeric" || kind == "isdecimal") return is_digit;
    if (kind == "isalpha") return is_letter;
    if (kind == "isalnum") return is_digit || is_letter;
    return kBlanks.find(c) != std::string_view::npos;
  };
  return !text.empty() && std::all_of(text.begin(), text.end(), fits);
}

std::string join_text(std::string_view between, const Value& items) {
  std::string out;
  bool is_first = true;
  for (const Value& item : items.items()) {
    if (!is_first) out += between;
    is_first = false;
    out += item.text();
    if (out.size() > kTextBytesMax) throw TemplateError("a string grows too long");
  }
  return out;
}

// "{} of {}".format(a, b): places in order or by number, without format specifications.
std::string format_text(std::string_view text, const Arguments& arguments) {
  std::string out;
  size_t next = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if ((c == '{' || c == '}') && i + 1 < text.size() && text[i + 1] == c) {
      out += c;
      ++i;
    } else if (c == '{') {
      const size_t end = text.find('}', i);
      if (end == std::string_view::npos) throw TemplateError("format: '{' has no '}'");
      const std::string name(text.substr(i + 1, end - i - 1));
      const bool is_number = name.find_first_not_of("0123456789") == std::string::npos;
      const size_t place = name.empty()                   ? next++
                           : is_number && name.size() < 4 ? std::stoul(name)
                                                          : SIZE_MAX;
      const Value value = arguments.get(place, name);
      if (value.is_undefined())
        throw TemplateError(fmt::format("format: nothing for {{{}}}", name));
      out += value.to_text();
      i = end;
    } else {
      out += c;
    }
    if (out.size() > kTextBytesMax) throw TemplateError("a string grows too long");
  }
  return out;
}

Value call_string_method(const std::string& text, const std::string& name, const Arguments& given) {
  const Value first = given.get(0, "chars");
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const std::string set = first.is_string() ? first.text() : "";
    return strip_text(text, set, name != "rstrip", name != "lstrip");
  }
  if (name == "startswith" || name == "endswith") return has_edge(text, first, name[0] == 's');
  if (name == "split" || name == "rsplit") return split(text, given, name[0] == 'r');
  if (name == "splitlines") return split_lines(text, given.get(0, "keepends").is_true());
  if (name == "upper" || name == "lower") return change_case(text, name[0] == 'u');
  if (name == "title") return title_case(text);
  if (name == "capitalize") {
    const std::string lower = change_case(text, false);
    return lower.empty() ? lower : change_case(lower.substr(0, 1), true) + lower.substr(1);
  }
  if (name == "replace") {
    const Value most = given.get(2, "count");
    return replace_text(
        text, first.text(), given.get(1, "new").text(), most.is_undefined() ? -1 : most.to_int());
  }
  if (name == "find" || name == "rfind") return find_text(text, first, name[0] == 'r');
  if (name == "count") return count_text(text, first.text());
  if (name == "join") return join_text(text, first);
  if (name == "format") return format_text(text, given);
  if (name == "removeprefix") {
    return text.starts_with(first.text()) ? text.substr(first.text().size()) : text;
  }
  if (name == "removesuffix") {
    return text.ends_with(first.text()) ? text.substr(0, text.size() - first.text().size()) : text;
  }
  return all_of_kind(text, name);
}

Value call_dict_method(const Value& value, const std::string& name, const Arguments& given) {
  const ValueDict& dict = value.dict();
  if (name == "get") {
    const Value* found = dict.find(given.get(0, "key").to_text());
    if (found != nullptr) return *found;
    const Value otherwise = given.get(1, "default");
    return otherwise.is_undefined() ? Value(Value::None{}) : otherwise;
  }
  ValueList items;
  for (const auto& [key, item] : dict.entries) {
    if (name == "keys") items.emplace_back(key);
    if (name == "values") items.push_back(item);
    if (name == "items") items.emplace_back(ValueList{key, item});
  }
  return items;
}

Value count_in_list(const Value& list, const std::string& name, const Arguments& given) {
  int64_t count = 0, place = 0;
  for (const Value& item : list.list()) {
    const bool is_it = item == given.get(0, "value");
    if (is_it && name == "index") return place;
    count += is_it ? 1 : 0;
    ++place;
  }
  if (name == "index") throw TemplateError("index: the list does not hold that");
  return count;
}

bool is_one_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Value range_of(const Arguments& given) {
  int64_t start = 0, stop = given.get(0, "stop").to_int(), step = 1;
  if (given.positional.size() > 1) {
    start = stop;
    stop = given.positional[1].to_int();
  }
  if (given.positional.size() > 2) step = given.positional[2].to_int();
  if (step == 0) throw TemplateError("range: a step of 0");
  ValueList numbers;
  for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step) {
    if (static_cast<int64_t>(numbers.size()) >= kRangeMax) throw TemplateError("range: too long");
    numbers.emplace_back(i);
  }
  return numbers;
}

ValueDict dict_of(const Arguments& given) {
  ValueDict dict;
  if (!given.positional.empty()) dict = given.positional[0].dict();
  for (const auto& [name, value] : given.named) dict.set(name, value);
  return dict;
}

std::string format_time(const std::string& format, int64_t now_s) {
  if (format.empty() || format.size() > 200) return "";
  const auto now = static_cast<std::time_t>(now_s);
  std::tm local{};
  ::localtime_r(&now, &local);
  std::string out(4096, '\0');
  out.resize(std::strftime(out.data(), out.size(), format.c_str(), &local));
  return out;
}

}  // namespace

std::string_view strip_text(std::string_view text, std::string_view set, bool left, bool right) {
  if (set.empty()) set = kBlanks;
  if (left) text.remove_prefix(std::min(text.find_first_not_of(set), text.size()));
  if (right) text = text.substr(0, text.find_last_not_of(set) + 1);
  return text;
}

std::string replace_text(std::string_view text,
                         std::string_view from,
                         std::string_view to,
                         int64_t num_max) {
  if (from.empty()) throw TemplateError("replace: nothing to look for");
  std::string out;
  for (size_t at = text.find(from); at != std::string_view::npos && num_max != 0;
       at = text.find(from)) {
    out += text.substr(0, at);
    out += to;
    if (out.size() > kTextBytesMax) throw TemplateError("a string grows too long");
    text.remove_prefix(at + from.size());
    --num_max;
  }
  return out += text;
}

Value method_of(const Value& value, const std::string& name) {
  if (value.is_string() &&
      is_one_of(name,
                {"strip",        "lstrip",       "rstrip",  "startswith", "endswith",  "split",
                 "rsplit",       "splitlines",   "upper",   "lower",      "title",     "capitalize",
                 "replace",      "find",         "rfind",   "count",      "join",      "format",
                 "removeprefix", "removesuffix", "isdigit", "isnumeric",  "isdecimal", "isalpha",
                 "isalnum",      "isspace"})) {
    return Function([value, name](const Arguments& given) {
      return call_string_method(value.text(), name, given);
    });
  }
  if (value.is_dict() && !value.is_namespace() &&
      is_one_of(name, {"get", "keys", "values", "items"})) {
    return Function(
        [value, name](const Arguments& given) { return call_dict_method(value, name, given); });
  }
  if (value.is_list() && is_one_of(name, {"index", "count"})) {
    return Function(
        [value, name](const Arguments& given) { return count_in_list(value, name, given); });
  }
  return {};
}

Value global_function(const std::string& name, int64_t now_s) {
  if (name == "range") return Function(range_of);
  if (name == "namespace") {
    return Function([](const Arguments& given) { return Value::make_namespace(dict_of(given)); });
  }
  if (name == "dict") return Function([](const Arguments& given) { return Value(dict_of(given)); });
  if (name == "raise_exception") {
    return Function([](const Arguments& given) -> Value {
      throw TemplateError(given.get(0, "message").to_text());
    });
  }
  if (name == "strftime_now") {
    return Function([now_s](const Arguments& given) {
      return Value(format_time(given.get(0, "format").text(), now_s));
    });
  }
  return Value::undefined(name);
}

}  // namespace pelago::serve
