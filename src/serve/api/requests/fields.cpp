#include "serve/api/requests/fields.h"

#include <fmt/format.h>

#include <cmath>

#include "base/config.h"
#include "serve/api/api_error.h"

namespace pelago::serve {

std::string shown(const Value& value) {
  if (value.is_list() && value.list().size() > 20)
    return fmt::format("a list of {}", value.list().size());
  if (value.weight() > 40) return std::string(value.type_name());
  return value.to_json();
}

Fields::Fields(const Value& object, std::string where)
    : dict_(object.is_dict() ? object.dict()
                             : throw ApiError(400,
                                              fmt::format("{} must be an object, not {}",
                                                          where.empty() ? "the body" : where,
                                                          object.type_name()),
                                              where)),
      where_(std::move(where)) {}

std::string Fields::path(std::string_view name) const {
  return where_.empty() ? std::string(name) : fmt::format("{}.{}", where_, name);
}

void Fields::refuse(std::string_view name, const std::string& what) const {
  throw ApiError(400, fmt::format("{} {}", path(name), what), path(name));
}

const Value* Fields::find(std::string_view name) {
  known_.emplace(name);
  const Value* value = dict_.find(name);
  return value == nullptr || value->is_none() ? nullptr : value;
}

std::optional<double> Fields::number(std::string_view name, double min, double max) {
  const Value* value = find(name);
  if (value == nullptr) return std::nullopt;
  const bool is_good = value->is_number() && !value->is_bool() && value->to_double() >= min &&
                       value->to_double() <= max;
  if (!is_good)
    refuse(name, fmt::format("is {}: it must be a number from {} to {}", shown(*value), min, max));
  return value->to_double();
}

std::optional<int64_t> Fields::whole(std::string_view name, int64_t min, int64_t max) {
  const Value* value = find(name);
  if (value == nullptr) return std::nullopt;
  // Some clients send 16.0.
  const bool is_whole = value->is_int() ||
                        (value->is_float() && std::floor(value->to_double()) == value->to_double());
  const double number = is_whole ? value->to_double() : 0;
  const bool overflows = value->is_float() && std::abs(number) > 9e18;
  if (!is_whole || overflows || number < static_cast<double>(min) ||
      number > static_cast<double>(max)) {
    refuse(name,
           fmt::format("is {}: it must be a whole number from {} to {}", shown(*value), min, max));
  }
  return value->is_int() ? value->to_int() : static_cast<int64_t>(number);
}

std::optional<bool> Fields::truth(std::string_view name) {
  const Value* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_bool())
    refuse(name, fmt::format("is {}: it must be true or false", shown(*value)));
  return value->is_true();
}

std::optional<std::string> Fields::text(std::string_view name, size_t bytes_max) {
  const Value* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) refuse(name, fmt::format("is {}: it must be a string", shown(*value)));
  if (value->text().size() > bytes_max) {
    refuse(name,
           fmt::format("has {} bytes: at most {} are allowed", value->text().size(), bytes_max));
  }
  return value->text();
}

std::vector<std::string> Fields::texts(std::string_view name, size_t num_max, size_t bytes_max) {
  const Value* value = find(name);
  if (value == nullptr) return {};
  const ValueList one = {*value};
  const ValueList& items = value->is_list() ? value->list() : one;
  if (items.size() > num_max)
    refuse(name, fmt::format("has {} strings: at most {} are allowed", items.size(), num_max));
  std::vector<std::string> texts;
  for (const Value& item : items) {
    if (!item.is_string())
      refuse(name, fmt::format("holds {}: it must be a string or a list of strings", shown(item)));
    if (item.text().empty() || item.text().size() > bytes_max) {
      refuse(name,
             fmt::format(
                 "holds a string of {} bytes: 1 to {} are allowed", item.text().size(), bytes_max));
    }
    texts.push_back(item.text());
  }
  return texts;
}

std::vector<int32_t> Fields::tokens(std::string_view name, size_t num_max, int64_t num_tokens) {
  const Value* value = find(name);
  if (value == nullptr) return {};
  return tokens_of(*value, path(name), num_max, num_tokens);
}

std::vector<int32_t> tokens_of(const Value& list,
                               const std::string& name,
                               size_t num_max,
                               int64_t num_tokens) {
  if (!list.is_list()) throw ApiError(400, fmt::format("{} must be a list of tokens", name), name);
  if (list.list().size() > num_max) {
    throw ApiError(
        400,
        fmt::format("{} has {} tokens: at most {} are allowed", name, list.list().size(), num_max),
        name);
  }
  std::vector<int32_t> tokens;
  for (const Value& item : list.list()) {
    if (!item.is_int() || item.to_int() < 0 || item.to_int() >= num_tokens) {
      throw ApiError(400,
                     fmt::format("{} holds {}: tokens are whole numbers from 0 to {}",
                                 name,
                                 shown(item),
                                 num_tokens - 1),
                     name);
    }
    tokens.push_back(static_cast<int32_t>(item.to_int()));
  }
  return tokens;
}

void Fields::ignore(std::initializer_list<std::string_view> names) {
  for (const std::string_view name : names) known_.emplace(name);
}

void Fields::refuse_unknown() const {
  for (const auto& [name, value] : dict_.entries) {
    if (known_.contains(name)) continue;
    const std::string shortened = name.substr(0, 64);
    const auto nearest =
        nearest_word(shortened, std::vector<std::string>(known_.begin(), known_.end()));
    throw ApiError(400,
                   fmt::format("{} is not a known field{}",
                               path(shortened),
                               nearest ? fmt::format("; did you mean {}?", *nearest) : ""),
                   path(shortened),
                   "unknown_parameter");
  }
}

}  // namespace pelago::serve
