// What a template may call: filters, tests, the methods of strings and mappings, and functions, as
// Jinja2 and Python have them. What no chat template of note uses is left out, and named in the
// error.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "serve/template/value.h"

namespace pelago::serve {

/// value | name(arguments). Throws TemplateError, also for a name that is none.
Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments);
bool is_filter(const std::string& name);

/// value is name(arguments).
bool apply_test(const std::string& name, const Value& value, const Arguments& arguments);

/// value.name, ready to be called; undefined if the type has no such method.
Value method_of(const Value& value, const std::string& name);

/// range, namespace, dict, raise_exception, strftime_now; undefined for other names. now_s: seconds
/// since 1970, for strftime_now.
Value global_function(const std::string& name, int64_t now_s);

/// text with from replaced by to, at most num_max times (-1: all). Checks the length beforehand.
std::string replace_text(std::string_view text,
                         std::string_view from,
                         std::string_view to,
                         int64_t num_max = -1);
/// Without the characters of set (blanks if empty) at the sides.
std::string_view strip_text(std::string_view text, std::string_view set, bool left, bool right);

}  // namespace pelago::serve
