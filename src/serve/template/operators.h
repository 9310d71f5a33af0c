// What a template's operators do to values, as Jinja2 and Python have it. All throw TemplateError.
#pragma once

#include <string>

#include "serve/template/value.h"

namespace pelago::serve {

/// value.name: a method, or what a mapping has under that name, or undefined.
Value member_of(const Value& value, const std::string& name);
/// value[place]; undefined where there is nothing.
Value item_of(const Value& value, const Value& place);
Value negative_of(const Value& value);
/// a name b: comparisons, in and not in, ~ and arithmetic.
Value apply_operator(const std::string& name, const Value& a, const Value& b);

/// The largest whole number that arithmetic keeps exact.
inline constexpr int64_t kIntMax = int64_t{1} << 53;

}  // namespace pelago::serve
