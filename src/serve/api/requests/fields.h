// The fields of a request, each taken once with its type and range; what nobody took is refused by
// name. Null counts as left out, as clients send it.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "serve/template/value.h"

namespace pelago::serve {

class Fields {
 public:
  /// object: a mapping that outlives this. where: "messages[2]", in front of names in messages;
  /// empty for the request itself. Throws ApiError 400 if it is no mapping.
  Fields(const Value& object, std::string where);

  /// The field's value; null if it was left out. It counts as known from now on.
  const Value* find(std::string_view name);
  /// These throw ApiError 400 naming the field, its value and what it may be.
  std::optional<double> number(std::string_view name, double min, double max);
  std::optional<int64_t> whole(std::string_view name, int64_t min, int64_t max);
  std::optional<bool> truth(std::string_view name);
  std::optional<std::string> text(std::string_view name, size_t bytes_max);
  /// One string or a list of them.
  std::vector<std::string> texts(std::string_view name, size_t num_max, size_t bytes_max);
  std::vector<int32_t> tokens(std::string_view name, size_t num_max, int64_t num_tokens);
  /// Fields that other servers know and that change nothing here.
  void ignore(std::initializer_list<std::string_view> names);
  /// Throws ApiError 400 naming the first field that nobody asked for, and the nearest known one.
  void refuse_unknown() const;

  [[noreturn]] void refuse(std::string_view name, const std::string& what) const;
  std::string path(std::string_view name) const;

 private:
  const ValueDict& dict_;
  std::string where_;
  std::set<std::string, std::less<>> known_;
};

/// A value in a message: shortened, as JSON.
std::string shown(const Value& value);
/// The tokens of a list value, each checked against the vocabulary. Throws ApiError 400.
std::vector<int32_t> tokens_of(const Value& list,
                               const std::string& name,
                               size_t num_max,
                               int64_t num_tokens);

}  // namespace pelago::serve
