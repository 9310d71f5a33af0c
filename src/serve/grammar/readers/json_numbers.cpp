#include "serve/grammar/readers/json_numbers.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/error.h"

namespace pelago::serve {

namespace {

constexpr int64_t kLargest = 999'999'999'999'999'999;  // 18 digits: fits int64 with room

Patterns::Id digits(Patterns& patterns, char low, char high, int64_t count) {
  const Patterns::Id one =
      patterns.set({{static_cast<uint32_t>(low), static_cast<uint32_t>(high)}});
  return patterns.repeat(one, count, count);
}

/// Numbers of as many digits as low and high, which have the same number of them.
Patterns::Id same_length(const std::string& low, const std::string& high, Patterns& patterns) {
  if (low.empty()) return patterns.bytes("");
  const bool is_all =
      low.find_first_not_of('0') == low.npos && high.find_first_not_of('9') == high.npos;
  if (is_all) return digits(patterns, '0', '9', static_cast<int64_t>(low.size()));
  const std::string low_rest = low.substr(1);
  const std::string high_rest = high.substr(1);
  const auto from = [&](char digit, const std::string& first, const std::string& last) {
    return patterns.sequence(
        {patterns.bytes(std::string(1, digit)), same_length(first, last, patterns)});
  };
  if (low[0] == high[0]) return from(low[0], low_rest, high_rest);
  const std::string nines(low_rest.size(), '9');
  const std::string zeros(low_rest.size(), '0');
  std::vector<Patterns::Id> ways = {from(low[0], low_rest, nines)};
  if (high[0] - low[0] > 1) {
    ways.push_back(patterns.sequence(
        {digits(patterns, static_cast<char>(low[0] + 1), static_cast<char>(high[0] - 1), 1),
         digits(patterns, '0', '9', static_cast<int64_t>(low_rest.size()))}));
  }
  ways.push_back(from(high[0], zeros, high_rest));
  return patterns.choice(std::move(ways));
}

/// Integers from low to high, both at least 0.
Patterns::Id magnitudes(int64_t low, int64_t high, Patterns& patterns) {
  std::vector<Patterns::Id> ways;
  while (low <= high) {
    const std::string text = std::to_string(low);
    const int64_t same_digits_max = std::min<int64_t>(high, std::stoll(std::string(text.size(), '9')));
    ways.push_back(same_length(text, std::to_string(same_digits_max), patterns));
    low = same_digits_max + 1;
  }
  return patterns.choice(std::move(ways));
}

void check(const NumberBounds& bounds) {
  if (bounds.min.value_or(-kLargest) > bounds.max.value_or(kLargest)) {
    fail_usage("schema: no number is at least {} and at most {}", *bounds.min, *bounds.max);
  }
}

}  // namespace

Patterns::Id integer_pattern(const NumberBounds& bounds, Patterns& patterns) {
  check(bounds);
  const int64_t min = std::clamp(bounds.min.value_or(-kLargest), -kLargest, kLargest);
  const int64_t max = std::clamp(bounds.max.value_or(kLargest), -kLargest, kLargest);
  std::vector<Patterns::Id> ways;
  if (max >= 0) ways.push_back(magnitudes(std::max<int64_t>(min, 0), max, patterns));
  if (min < 0) {
    ways.push_back(patterns.sequence(
        {patterns.bytes("-"), magnitudes(std::max<int64_t>(-max, 1), -min, patterns)}));
  }
  return patterns.choice(std::move(ways));
}

Patterns::Id number_pattern(const NumberBounds& bounds, Patterns& patterns) {
  check(bounds);
  const Patterns::Id digit = patterns.set({{'0', '9'}});
  const Patterns::Id fraction =
      patterns.optional(patterns.sequence({patterns.bytes("."), patterns.repeat(digit, 1, 18)}));
  if (!bounds.min && !bounds.max) {
    const Patterns::Id sign = patterns.set({{'+', '+'}, {'-', '-'}});
    const Patterns::Id exponent =
        patterns.optional(patterns.sequence({patterns.set({{'E', 'E'}, {'e', 'e'}}),
                                             patterns.optional(sign),
                                             patterns.repeat(digit, 1, 3)}));
    return patterns.sequence({integer_pattern({}, patterns), fraction, exponent});
  }
  // Up to the bound: smaller whole parts with any fraction, or the bound itself.
  const int64_t min = std::clamp(bounds.min.value_or(-kLargest), -kLargest, kLargest);
  const int64_t max = std::clamp(bounds.max.value_or(kLargest), -kLargest, kLargest);
  std::vector<Patterns::Id> ways = {integer_pattern(bounds, patterns)};
  const int64_t low = std::max<int64_t>(min, 0);
  if (max > low) ways.push_back(patterns.sequence({magnitudes(low, max - 1, patterns), fraction}));
  const int64_t low_below = std::max<int64_t>(-max, 0);
  if (-min > low_below) {
    ways.push_back(patterns.sequence(
        {patterns.bytes("-"), magnitudes(low_below, -min - 1, patterns), fraction}));
  }
  return patterns.choice(std::move(ways));
}

}  // namespace pelago::serve
