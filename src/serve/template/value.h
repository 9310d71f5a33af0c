// The values of a template, as Python has them, since chat templates are written against Python's
// Jinja2: strings are of code points, dicts keep their order, 1.0 prints as "1.0" and True as
// "True". Copies share strings, lists and dicts, which nothing changes once they are made; only a
// namespace changes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace pelago::serve {

/// A template that cannot be read, or that cannot be applied to what it was given. One line.
class TemplateError : public std::runtime_error {
 public:
  explicit TemplateError(const std::string& message) : std::runtime_error(message) {}
};

class Value;
using ValueList = std::vector<Value>;

/// What a template may build: a list that holds a list twice that holds a list twice ... is small
/// in memory and endless to print.
inline constexpr size_t kTextBytesMax = 128 << 20;  // of one string
inline constexpr size_t kWeightMax = 16 << 20;  // of one value: strings / 16 bytes, items, parts

/// A dict or a namespace. Keys are strings.
struct ValueDict {
  std::vector<std::pair<std::string, Value>> entries;
  const Value* find(std::string_view key) const;
  void set(const std::string& key, Value value);
};

struct Arguments {
  ValueList positional;
  std::vector<std::pair<std::string, Value>> named;
  /// The argument at that place or of that name; undefined if it was not given.
  Value get(size_t place, std::string_view name) const;
};
using Function = std::function<Value(const Arguments&)>;

class Value {
 public:
  struct Undefined {
    std::string name;
  };
  struct None {};

  Value() : content_(Undefined{}) {}
  Value(None) : content_(None{}) {}                           // NOLINT(google-explicit-constructor)
  Value(bool truth) : content_(truth) {}                      // NOLINT(google-explicit-constructor)
  Value(int64_t number) : content_(number) {}                 // NOLINT(google-explicit-constructor)
  Value(double number) : content_(number) {}                  // NOLINT(google-explicit-constructor)
  Value(std::string text);                                    // NOLINT(google-explicit-constructor)
  Value(const char* text) : Value(std::string(text)) {}       // NOLINT(google-explicit-constructor)
  Value(std::string_view text) : Value(std::string(text)) {}  // NOLINT
  Value(ValueList items);                                     // NOLINT(google-explicit-constructor)
  Value(ValueDict dict);                                      // NOLINT(google-explicit-constructor)
  Value(Function function);                                   // NOLINT(google-explicit-constructor)
  static Value undefined(std::string name) {
    Value value;
    value.content_ = Undefined{std::move(name)};
    return value;
  }
  static Value make_namespace(ValueDict dict);

  bool is_undefined() const { return is<Undefined>(); }
  bool is_none() const { return is<None>(); }
  bool is_bool() const { return is<bool>(); }
  bool is_int() const { return is<int64_t>(); }
  bool is_float() const { return is<double>(); }
  bool is_number() const { return is_int() || is_float() || is_bool(); }
  bool is_string() const { return is<Text>(); }
  bool is_list() const { return is<List>(); }
  bool is_dict() const { return is<Dict>() || is<Namespace>(); }
  bool is_namespace() const { return is<Namespace>(); }
  bool is_function() const { return is<Shared>(); }

  /// These throw TemplateError naming what the value is instead.
  const std::string& text() const;
  const ValueList& list() const;
  const ValueDict& dict() const;
  int64_t to_int() const;
  double to_double() const;
  ValueDict& namespace_dict() const;
  Value call(const Arguments& arguments) const;

  size_t weight() const;
  bool is_true() const;  // Python's bool()
  size_t length() const;
  /// What a for loop goes through: items, keys, characters; nothing for undefined.
  ValueList items() const;
  /// Python's str() and repr().
  std::string to_text() const;
  std::string to_repr() const;
  /// json.dumps(..., ensure_ascii=False). indent < 0: one line.
  std::string to_json(int indent = -1) const;
  std::string_view type_name() const;
  friend bool operator==(const Value& a, const Value& b);
  /// Python's <. Throws TemplateError if the two cannot be compared.
  static bool less(const Value& a, const Value& b);

 private:
  using Text = std::shared_ptr<const std::string>;
  template <typename Content>
  struct Weighed {
    Content content;
    size_t weight;
  };
  using List = std::shared_ptr<const Weighed<ValueList>>;
  using Dict = std::shared_ptr<const Weighed<ValueDict>>;
  using Namespace = std::shared_ptr<ValueDict>;
  using Shared = std::shared_ptr<const Function>;  // owners of all: every copy
  template <typename T>
  bool is() const {
    return std::holds_alternative<T>(content_);
  }
  std::variant<Undefined, None, bool, int64_t, double, Text, List, Dict, Namespace, Shared>
      content_;
};

/// What a stranger's JSON may hold: its memory is bounded by these and by its length.
struct JsonLimits {
  size_t depth_max = 64;
  size_t num_values_max = 1'000'000;
};

/// JSON's values, keys in their order, the last one of a name. Throws TemplateError if text is not
/// JSON, or past the limits.
Value value_of_json(std::string_view text, const JsonLimits& limits = {});

/// text in quotes, as JSON has it; bytes that are not UTF-8 become U+FFFD.
std::string json_quoted(std::string_view text);

/// Code points, each as its bytes of UTF-8; a byte that is none stands alone.
std::vector<std::string_view> characters_of(std::string_view text);

}  // namespace pelago::serve
