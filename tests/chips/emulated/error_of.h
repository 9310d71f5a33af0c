// What libtorch says when an operation on a chip fails.
#pragma once

#include <c10/util/Exception.h>

#include <functional>
#include <string>

namespace pelago::chips {

/// The message of the c10::Error that action throws; "" if it throws none.
inline std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

}  // namespace pelago::chips
