// A struct's fields are listed once, in each_field(visit, value); a writer and a reader walk the
// same list, so that what is written can always be read. The reader is strict: it names every field
// that is missing, unknown or of the wrong kind, because plan.json is a file that people edit.
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/config.h"
#include "base/error.h"
#include "base/text/json.h"

namespace pelago::plan {

using Json = nlohmann::ordered_json;

/// T, or const T: each_field() takes both, a reader fills what a writer only looks at.
template <typename P, typename T>
concept Like = std::same_as<std::remove_const_t<P>, T>;

class RecordWriter {
 public:
  template <typename T>
  void operator()(const char* key, const T& value) {
    json_[key] = to_json_value(value);
  }
  /// A field that files need not have: left out where it has its default.
  template <typename T>
  void maybe(const char* key, const T& value, const T& usual = {}) {
    const Json written = to_json_value(value);
    if (written != to_json_value(usual)) json_[key] = written;
  }
  Json take() { return std::move(json_); }

 private:
  template <typename T>
  static Json to_json_value(const T& value) {
    if constexpr (std::is_arithmetic_v<T> || std::same_as<T, std::string>) {
      return value;
    } else {
      RecordWriter writer;
      each_field(writer, value);
      return writer.take();
    }
  }
  template <typename T>
  static Json to_json_value(const std::vector<T>& values) {
    Json array = Json::array();
    for (const T& value : values) array.push_back(to_json_value(value));
    return array;
  }
  template <typename T>
  static Json to_json_value(const std::map<std::string, T>& values) {
    Json object = Json::object();
    for (const auto& [key, value] : values) object[key] = to_json_value(value);
    return object;
  }

  Json json_ = Json::object();
};

class RecordReader {
 public:
  /// json outlives the reader. where: "plan.json: sites[0]", for messages.
  RecordReader(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
    if (!json_.is_object()) fail_usage("{}: must be an object", where_);
  }

  template <typename T>
  void operator()(const char* key, T& value) {
    known_.insert(key);
    const auto found = json_.find(key);
    if (found == json_.end()) fail_usage("{}: field {} is missing", where_, key);
    read_value(*found, fmt::format("{}: {}", where_, key), value);
  }

  template <typename T>
  void maybe(const char* key, T& value, const T& usual = {}) {
    known_.insert(key);
    value = usual;
    const auto found = json_.find(key);
    if (found != json_.end()) read_value(*found, fmt::format("{}: {}", where_, key), value);
  }

  void refuse_unknown() const {
    for (const auto& [key, value] : json_.items()) {
      if (known_.contains(key)) continue;
      const auto nearest = nearest_word(key, {known_.begin(), known_.end()});
      fail_usage("{}: unknown field {}{}",
                 where_,
                 key,
                 nearest ? fmt::format("; did you mean {}?", *nearest) : "");
    }
  }

 private:
  [[noreturn]] static void refuse(const Json& json, const std::string& where, const char* wanted) {
    // Only plain values are shown: a nested one may be long, and deeper than the stack.
    const std::string shown = json.is_primitive()
                                  ? json.dump(-1, ' ', false, Json::error_handler_t::replace)
                                  : fmt::format("an {}", json.type_name());
    fail_usage("{} = {} must be {}", where, shown, wanted);
  }
  static void read_value(const Json& json, const std::string& where, std::string& value) {
    if (!json.is_string()) refuse(json, where, "a string");
    value = json.get<std::string>();
  }
  static void read_value(const Json& json, const std::string& where, bool& value) {
    if (!json.is_boolean()) refuse(json, where, "true or false");
    value = json.get<bool>();
  }
  static void read_value(const Json& json, const std::string& where, double& value) {
    if (!json.is_number()) refuse(json, where, "a number");
    value = json.get<double>();
    // No field of ours can be negative, and a plan with one would go wrong far from here.
    if (!(std::isfinite(value) && value >= 0)) refuse(json, where, "0 or more");
  }
  template <std::signed_integral T>
  static void read_value(const Json& json, const std::string& where, T& value) {
    constexpr auto kMax = static_cast<uint64_t>(std::numeric_limits<T>::max());
    if (!json.is_number_unsigned() || json.get<uint64_t>() > kMax) {
      refuse(json, where, "a whole number, 0 or more");
    }
    value = json.get<T>();
  }
  template <typename T>
  static void read_value(const Json& json, const std::string& where, std::vector<T>& values) {
    if (!json.is_array()) refuse(json, where, "a list");
    values.resize(json.size());
    for (size_t i = 0; i < values.size(); ++i) {
      read_value(json[i], fmt::format("{}[{}]", where, i), values[i]);
    }
  }
  template <typename T>
  static void read_value(const Json& json,
                         const std::string& where,
                         std::map<std::string, T>& values) {
    if (!json.is_object()) refuse(json, where, "an object");
    for (const auto& [key, value] : json.items()) {
      read_value(value, fmt::format("{}.{}", where, key), values[key]);
    }
  }
  template <typename T>
  static void read_value(const Json& json, const std::string& where, T& value) {
    RecordReader reader(json, where);
    each_field(reader, value);
    reader.refuse_unknown();
  }

  const Json& json_;  // outlives the reader
  std::string where_;
  std::set<std::string> known_;
};

/// {"version": version, ...fields of value}, indented for people, with a last newline.
template <typename T>
std::string write_record(const T& value, int64_t version) {
  RecordWriter writer;
  writer("version", version);
  each_field(writer, value);
  // A byte that is not UTF-8 (only --set can bring one in) becomes U+FFFD instead of an exception.
  return writer.take().dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

/// Throws Failure (exit 2) naming the file and the field.
template <typename T>
T read_record(std::string_view text, const std::string& name, int64_t version_read) {
  Json json;
  try {
    json = Json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    fail_usage("{}: not valid JSON: {}", name, error.what());
  }
  RecordReader reader(json, name);
  int64_t version = 0;
  reader("version", version);
  if (version != version_read) {
    fail_usage("{}: version = {}, but this pelago reads version {}; make the file again",
               name,
               version,
               version_read);
  }
  T value;
  each_field(reader, value);
  reader.refuse_unknown();
  return value;
}

}  // namespace pelago::plan
