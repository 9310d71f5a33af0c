// rapidcheck with a seed of ours: a test that fails does so every time.
#pragma once

#include <rapidcheck.h>

#include <iostream>
#include <utility>

namespace pelago::data {

/// Tries the property on num_cases inputs. Returns false, and prints the smallest input found, if
/// one breaks it.
template <typename Property>
bool holds(int num_cases, Property&& property) {
  rc::detail::TestParams params;
  params.seed = 20260101;
  params.maxSuccess = num_cases;
  const auto result = rc::detail::checkTestable(
      std::forward<Property>(property), rc::detail::TestMetadata(), params);
  const bool passed = result.template is<rc::detail::SuccessResult>();
  if (!passed) rc::detail::printResultMessage(result, std::cerr);
  return passed;
}

}  // namespace pelago::data
