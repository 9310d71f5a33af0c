// JSON Schema (2020-12) as patterns. What restricts a value and is not supported is refused by
// name, never ignored: an answer that was asked to fit a schema fits it. Where a schema leaves a
// choice that only costs tokens, the answer is narrower: properties in their order, none beside
// those declared unless additionalProperties asks for them, no more white space than readers need.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "serve/grammar/readers/json_numbers.h"
#include "serve/grammar/readers/readers.h"

namespace pelago::serve {

namespace {

using Json = nlohmann::ordered_json;

constexpr int kSchemaDeepMax = 100;
constexpr size_t kSchemaBytesMax = 1 << 20;
constexpr size_t kPropertiesMax = 1000;

// Words that say something about a schema, not about values.
const std::set<std::string> kAnnotations = {"$schema",
                                            "$id",
                                            "$comment",
                                            "$defs",
                                            "definitions",
                                            "title",
                                            "description",
                                            "default",
                                            "examples",
                                            "deprecated",
                                            "readOnly",
                                            "writeOnly",
                                            "strict",
                                            "name",
                                            "nullable"};

const std::vector<std::pair<std::string, std::string>> kFormats = {
    {"date", R"(\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01]))"},
    {"time", R"(([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d))"},
    {"date-time",
     R"(\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d))"},
    {"uuid", R"([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12})"},
    {"email", R"([A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63}){1,4})"},
    {"hostname",
     R"([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?){0,8})"},
    {"ipv4", R"(((25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(25[0-5]|2[0-4]\d|1?\d?\d))"}};

class SchemaReader {
 public:
  SchemaReader(const Json& root, Patterns& patterns) : root_(root), patterns_(patterns) {
    define_values();
  }

  Patterns::Id any_object() { return patterns_.rule("json object"); }
  Patterns::Id read() { return read_value(root_, "schema", 0); }

 private:
  using Id = Patterns::Id;

  /// What every JSON text is made of.
  void define_values() {
    Patterns& p = patterns_;
    // A blank, or a line break with what indents the next line: enough to be readable, and never an
    // endless run of white space.
    const Id indent = p.sequence({p.bytes("\n"), p.repeat(p.set({{' ', ' '}}), 0, 32)});
    p.define("json space", p.optional(p.choice({p.bytes(" "), indent})));
    const Id hex = p.set({{'0', '9'}, {'A', 'F'}, {'a', 'f'}});
    const Id escape = p.choice({p.set({{'"', '"'},
                                       {'/', '/'},
                                       {'\\', '\\'},
                                       {'b', 'b'},
                                       {'f', 'f'},
                                       {'n', 'n'},
                                       {'r', 'r'},
                                       {'t', 't'}}),
                                p.sequence({p.bytes("u"), p.repeat(hex, 4, 4)})});
    p.define("json char",
             p.choice({p.set(complement({{0, 0x1F}, {'"', '"'}, {'\\', '\\'}})),
                       p.sequence({p.bytes("\\"), escape})}));
    p.define("json string", quoted(p.repeat(p.rule("json char"), 0, -1)));
    p.define("json number", number_pattern({}, p));
    p.define("json integer", integer_pattern({}, p));
    p.define("json value",
             p.choice({p.rule("json object"),
                       p.rule("json array"),
                       p.rule("json string"),
                       p.rule("json number"),
                       p.bytes("true"),
                       p.bytes("false"),
                       p.bytes("null")}));
    p.define("json array", array_of({}, p.rule("json value"), 0, -1));
    const Id member = p.sequence({p.rule("json string"), colon(), p.rule("json value")});
    p.define("json object", enclosed("{", list_of(member, 0, -1), "}"));
  }

  Id space() { return patterns_.rule("json space"); }
  Id comma() { return patterns_.sequence({patterns_.bytes(","), space()}); }
  Id colon() { return patterns_.sequence({patterns_.bytes(":"), space()}); }
  Id quoted(Id text) {
    return patterns_.sequence({patterns_.bytes("\""), text, patterns_.bytes("\"")});
  }
  Id enclosed(const char* open, Id content, const char* close) {
    return patterns_.sequence(
        {patterns_.bytes(open), space(), content, space(), patterns_.bytes(close)});
  }
  /// min to max items with commas between; max -1: any number.
  Id list_of(Id item, int64_t min, int64_t max) {
    if (max == 0) return patterns_.bytes("");
    const Id more = patterns_.repeat(
        patterns_.sequence({comma(), item}), std::max<int64_t>(min - 1, 0), max < 0 ? -1 : max - 1);
    const Id list = patterns_.sequence({item, more});
    return min == 0 ? patterns_.optional(list) : list;
  }
  Id array_of(const std::vector<Id>& first, Id rest, int64_t min, int64_t max) {
    std::vector<Id> parts;
    for (const Id item : first) {
      if (!parts.empty()) parts.push_back(comma());
      parts.push_back(item);
    }
    const auto num_first = static_cast<int64_t>(first.size());
    if (first.empty()) {
      parts.push_back(list_of(rest, min, max));
    } else if (max < 0 || max > num_first) {
      parts.push_back(patterns_.repeat(patterns_.sequence({comma(), rest}),
                                       std::max<int64_t>(min - num_first, 0),
                                       max < 0 ? -1 : max - num_first));
    }
    return enclosed("[", patterns_.sequence(std::move(parts)), "]");
  }

  static void check_words(const Json& schema,
                          const std::string& where,
                          const std::set<std::string>& known) {
    for (const auto& [word, value] : schema.items()) {
      if (!known.contains(word) && !kAnnotations.contains(word)) {
        fail_usage("{}: \"{}\" is not supported here", where, word);
      }
    }
  }

  static int64_t count_of(const Json& schema,
                          const char* word,
                          int64_t otherwise,
                          const std::string& where) {
    if (!schema.contains(word)) return otherwise;
    const Json& value = schema[word];
    if (!value.is_number_integer() || value.get<int64_t>() < 0 ||
        value.get<int64_t>() > 1'000'000) {
      fail_usage("{}: \"{}\" must be a whole number from 0 to 1000000", where, word);
    }
    return value.get<int64_t>();
  }

  Id literal(const Json& value) {
    return patterns_.bytes(value.dump(-1, ' ', false, Json::error_handler_t::replace));
  }

  Id read_value(const Json& schema, const std::string& where, int depth) {
    if (depth > kSchemaDeepMax) fail_usage("{}: nests more than {} deep", where, kSchemaDeepMax);
    if (schema.is_boolean()) {
      if (!schema.get<bool>()) fail_usage("{}: false allows nothing", where);
      return patterns_.rule("json value");
    }
    if (!schema.is_object()) fail_usage("{}: a schema must be an object, true or false", where);
    if (schema.contains("$ref")) return read_reference(schema, where, depth);
    if (schema.contains("const")) {
      check_words(schema, where, {"const", "type"});
      return literal(schema["const"]);
    }
    if (schema.contains("enum")) return read_enum(schema, where);
    for (const char* word : {"anyOf", "oneOf", "allOf"}) {
      if (schema.contains(word)) return read_ways(schema, word, where, depth);
    }
    return read_typed(schema, where, depth);
  }

  Id read_enum(const Json& schema, const std::string& where) {
    check_words(schema, where, {"enum", "type"});
    const Json& values = schema["enum"];
    if (!values.is_array() || values.empty()) fail_usage("{}: \"enum\" must list values", where);
    std::vector<Id> ways;
    for (const Json& value : values) ways.push_back(literal(value));
    return patterns_.choice(std::move(ways));
  }

  Id read_ways(const Json& schema, const char* word, const std::string& where, int depth) {
    check_words(schema, where, {word, "type"});
    const Json& parts = schema[word];
    if (!parts.is_array() || parts.empty()) fail_usage("{}: \"{}\" must list schemas", where, word);
    if (std::string(word) == "allOf" && parts.size() > 1) {
      fail_usage("{}: \"allOf\" of more than one schema is not supported", where);
    }
    std::vector<Id> ways;
    for (size_t idx = 0; idx < parts.size(); ++idx) {
      ways.push_back(read_value(parts[idx], fmt::format("{}.{}[{}]", where, word, idx), depth + 1));
    }
    return patterns_.choice(std::move(ways));
  }

  Id read_reference(const Json& schema, const std::string& where, int depth) {
    check_words(schema, where, {"$ref"});
    if (!schema["$ref"].is_string()) fail_usage("{}: \"$ref\" must be a string", where);
    const std::string target = schema["$ref"].get<std::string>();
    if (!target.starts_with("#")) {
      fail_usage("{}: \"$ref\" {} must point into this schema (#/$defs/...)", where, target);
    }
    const std::string rule = "ref " + target;
    if (reading_.insert(target).second) {
      const Json* found = nullptr;
      try {
        found = &root_.at(Json::json_pointer(target.substr(1)));
      } catch (const Json::exception&) {
        fail_usage("{}: \"$ref\" {} points nowhere", where, target);
      }
      patterns_.define(rule, read_value(*found, target, depth + 1));
    }
    return patterns_.rule(rule);
  }

  Id read_typed(const Json& schema, const std::string& where, int depth) {
    if (!schema.contains("type")) {
      if (schema.contains("properties")) return read_type("object", schema, where, depth);
      if (schema.contains("items")) return read_type("array", schema, where, depth);
      if (schema.contains("pattern")) return read_type("string", schema, where, depth);
      check_words(schema, where, {});
      return patterns_.rule("json value");
    }
    const Json& type = schema["type"];
    if (type.is_string()) return read_type(type.get<std::string>(), schema, where, depth);
    if (!type.is_array() || type.empty()) fail_usage("{}: \"type\" must name types", where);
    std::vector<Id> ways;
    for (const Json& one : type) {
      if (!one.is_string()) fail_usage("{}: \"type\" must name types", where);
      // Each type takes the words that are its own.
      Json alone = schema;
      alone.erase("type");
      ways.push_back(read_type(
          one.get<std::string>(), only_words_of(one.get<std::string>(), alone), where, depth));
    }
    return patterns_.choice(std::move(ways));
  }

  static const std::set<std::string>& words_of(const std::string& type) {
    static const std::map<std::string, std::set<std::string>> words = {
        {"object",
         {"type",
          "properties",
          "required",
          "additionalProperties",
          "minProperties",
          "maxProperties"}},
        {"array", {"type", "items", "prefixItems", "minItems", "maxItems"}},
        {"string", {"type", "minLength", "maxLength", "pattern", "format"}},
        {"integer", {"type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}},
        {"number", {"type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}},
        {"boolean", {"type"}},
        {"null", {"type"}}};
    static const std::set<std::string> none;
    const auto found = words.find(type);
    return found == words.end() ? none : found->second;
  }

  static Json only_words_of(const std::string& type, const Json& schema) {
    Json own = Json::object();
    for (const auto& [word, value] : schema.items()) {
      bool is_others = false;
      for (const char* other : {"object", "array", "string", "integer", "number"}) {
        is_others = is_others || (!words_of(type).contains(word) && words_of(other).contains(word));
      }
      if (!is_others) own[word] = value;
    }
    return own;
  }

  Id read_type(const std::string& type, const Json& schema, const std::string& where, int depth) {
    if (words_of(type).empty()) fail_usage("{}: there is no type \"{}\"", where, type);
    check_words(schema, where, words_of(type));
    if (type == "null") return patterns_.bytes("null");
    if (type == "boolean")
      return patterns_.choice({patterns_.bytes("true"), patterns_.bytes("false")});
    if (type == "integer") return integer_pattern(read_bounds(schema, where), patterns_);
    if (type == "number") return number_pattern(read_bounds(schema, where), patterns_);
    if (type == "string") return read_string(schema, where);
    if (type == "array") return read_array(schema, where, depth);
    return read_object(schema, where, depth);
  }

  /// Whole bounds within those of the schema: narrower where a number's are not whole, never wider.
  static NumberBounds read_bounds(const Json& schema, const std::string& where) {
    NumberBounds bounds;
    const auto read = [&](const char* word, bool is_min, bool is_exclusive) {
      if (!schema.contains(word)) return;
      const Json& value = schema[word];
      if (!value.is_number() || std::abs(value.get<double>()) > 9e17) {
        fail_usage("{}: \"{}\" must be a number within 9e17 of 0", where, word);
      }
      const double bound = value.get<double>();
      auto whole = static_cast<int64_t>(is_min ? std::ceil(bound) : std::floor(bound));
      if (is_exclusive && static_cast<double>(whole) == bound) whole += is_min ? 1 : -1;
      std::optional<int64_t>& kept = is_min ? bounds.min : bounds.max;
      kept = !kept ? whole : is_min ? std::max(*kept, whole) : std::min(*kept, whole);
    };
    read("minimum", true, false);
    read("maximum", false, false);
    read("exclusiveMinimum", true, true);
    read("exclusiveMaximum", false, true);
    return bounds;
  }

  Id read_string(const Json& schema, const std::string& where) {
    const auto read = [&](const std::string& regex, bool is_search) {
      return quoted(read_regex(regex, {.is_search = is_search, .in_json = true}, patterns_));
    };
    if (schema.contains("pattern")) {
      if (schema.contains("minLength") || schema.contains("maxLength")) {
        fail_usage("{}: \"pattern\" together with a length is not supported", where);
      }
      if (!schema["pattern"].is_string()) fail_usage("{}: \"pattern\" must be a string", where);
      return read(schema["pattern"].get<std::string>(), true);
    }
    if (schema.contains("format")) {
      for (const auto& [format, regex] : kFormats) {
        if (schema["format"] == format) return read(regex, false);
      }
    }
    const int64_t min = count_of(schema, "minLength", 0, where);
    const int64_t max = count_of(schema, "maxLength", -1, where);
    if (min == 0 && max < 0) return patterns_.rule("json string");
    return quoted(patterns_.repeat(patterns_.rule("json char"), min, max));
  }

  Id read_array(const Json& schema, const std::string& where, int depth) {
    std::vector<Id> first;
    if (schema.contains("prefixItems")) {
      if (!schema["prefixItems"].is_array())
        fail_usage("{}: \"prefixItems\" must be a list", where);
      for (const Json& item : schema["prefixItems"]) {
        first.push_back(read_value(item, where + ".prefixItems", depth + 1));
      }
    }
    int64_t max = count_of(schema, "maxItems", -1, where);
    Id rest = patterns_.rule("json value");
    if (schema.contains("items") && schema["items"] == false) {
      max = static_cast<int64_t>(first.size());
    } else if (schema.contains("items")) {
      rest = read_value(schema["items"], where + ".items", depth + 1);
    }
    const int64_t min = count_of(schema, "minItems", 0, where);
    if (max >= 0 && (max < min || max < static_cast<int64_t>(first.size()))) {
      fail_usage("{}: an array of at least {} and at most {} items is impossible", where, min, max);
    }
    return array_of(first, rest, min, max);
  }

  Id read_object(const Json& schema, const std::string& where, int depth) {
    const Json none = Json::object();
    const Json& properties = schema.contains("properties") ? schema["properties"] : none;
    if (!properties.is_object()) fail_usage("{}: \"properties\" must be an object", where);
    if (properties.size() > kPropertiesMax) {
      fail_usage("{}: more than {} properties", where, kPropertiesMax);
    }
    std::set<std::string> required;
    if (schema.contains("required")) {
      if (!schema["required"].is_array()) fail_usage("{}: \"required\" must be a list", where);
      for (const Json& name : schema["required"]) {
        if (!name.is_string() || !properties.contains(name.get<std::string>())) {
          fail_usage("{}: \"required\" names {}, which is no property", where, name.dump());
        }
        required.insert(name.get<std::string>());
      }
    }
    std::optional<Id> others;  // members beside those declared
    const bool says_more = schema.contains("additionalProperties");
    if (says_more ? schema["additionalProperties"] != false : properties.empty()) {
      const Json any = true;
      const Json& value = says_more ? schema["additionalProperties"] : any;
      others = patterns_.sequence({patterns_.rule("json string"),
                                   colon(),
                                   read_value(value, where + ".additionalProperties", depth + 1)});
    }
    if (properties.empty()) {
      if (!others) return enclosed("{", patterns_.bytes(""), "}");
      return enclosed("{",
                      list_of(*others,
                              count_of(schema, "minProperties", 0, where),
                              count_of(schema, "maxProperties", -1, where)),
                      "}");
    }
    if (schema.contains("minProperties") || schema.contains("maxProperties")) {
      fail_usage("{}: a number of properties beside named ones is not supported", where);
    }
    return enclosed("{", members(properties, required, others, where, depth), "}");
  }

  /// From the last property to the first: what may follow if a member has come before, which needs
  /// a comma, and if none has.
  Id members(const Json& properties,
             const std::set<std::string>& required,
             const std::optional<Id>& others,
             const std::string& where,
             int depth) {
    Patterns& p = patterns_;
    Id after = others ? p.repeat(p.sequence({comma(), *others}), 0, -1) : p.bytes("");
    Id first = others ? list_of(*others, 0, -1) : p.bytes("");
    const std::string name = fmt::format("members {} of {}", num_objects_++, where);
    size_t num_left = properties.size();
    std::vector<std::pair<std::string, const Json*>> in_order;
    for (const auto& [key, value] : properties.items()) in_order.emplace_back(key, &value);
    std::reverse(in_order.begin(), in_order.end());
    for (const auto& [key, value] : in_order) {
      --num_left;
      const Id member =
          p.sequence({literal(key), colon(), read_value(*value, where + "." + key, depth + 1)});
      Id with_comma = p.sequence({comma(), member, after});
      Id without = p.sequence({member, after});
      if (!required.contains(key)) {
        with_comma = p.choice({with_comma, after});
        without = p.choice({without, first});
      }
      // As rules, or every way to leave members out would be written out.
      p.define(fmt::format("{} after {}", name, num_left), with_comma);
      p.define(fmt::format("{} first {}", name, num_left), without);
      after = p.rule(fmt::format("{} after {}", name, num_left));
      first = p.rule(fmt::format("{} first {}", name, num_left));
    }
    return first;
  }

  const Json& root_;
  Patterns& patterns_;
  std::set<std::string> reading_;  // targets of $ref that have a rule
  int num_objects_ = 0;
};

}  // namespace

Patterns::Id any_json_object(Patterns& patterns) {
  const Json none;
  return SchemaReader(none, patterns).any_object();
}

Patterns::Id read_json_schema(std::string_view schema, Patterns& patterns) {
  if (schema.size() > kSchemaBytesMax) fail_usage("schema: longer than {} bytes", kSchemaBytesMax);
  const Json root = Json::parse(schema, nullptr, false);
  if (root.is_discarded()) fail_usage("schema: not JSON");
  return SchemaReader(root, patterns).read();
}

}  // namespace pelago::serve
