#include "serve/grammar/patterns.h"

#include <algorithm>

#include "base/error.h"

namespace pelago::serve {

namespace {

constexpr size_t kNodesMax = 200'000;  // a pattern of this size takes some 20 MB

/// Splits [first, last], of one length in UTF-8, where continuation bytes would not be whole
/// ranges.
void add_ranges(uint32_t first, uint32_t last, std::vector<ByteRanges>& ranges) {
  const std::string low = utf8_of(first);
  const std::string high = utf8_of(last);
  for (size_t idx = 1; idx < low.size(); ++idx) {
    const uint32_t mask = (1U << (6 * idx)) - 1;  // of the last idx bytes
    if ((first & ~mask) == (last & ~mask)) continue;
    if ((first & mask) != 0) {
      add_ranges(first, first | mask, ranges);
      add_ranges((first | mask) + 1, last, ranges);
      return;
    }
    if ((last & mask) != mask) {
      add_ranges(first, (last & ~mask) - 1, ranges);
      add_ranges(last & ~mask, last, ranges);
      return;
    }
  }
  ByteRanges range{.num_bytes = static_cast<int>(low.size())};
  for (size_t idx = 0; idx < low.size(); ++idx) {
    range.low[idx] = static_cast<uint8_t>(low[idx]);
    range.high[idx] = static_cast<uint8_t>(high[idx]);
  }
  ranges.push_back(range);
}

}  // namespace

CodePoints complement(CodePoints points) {
  points.emplace_back(0xD800, 0xDFFF);
  std::ranges::sort(points);
  CodePoints rest;
  uint32_t next = 0;
  for (const auto& [first, last] : points) {
    if (first > next) rest.emplace_back(next, first - 1);
    next = std::max(next, last + 1);
  }
  if (next <= kCodePointMax) rest.emplace_back(next, kCodePointMax);
  return rest;
}

std::string utf8_of(uint32_t code_point) {
  const auto byte = [](uint32_t value) { return static_cast<char>(value); };
  const auto tail = [&](int shift) { return byte(0x80 | (code_point >> shift & 0x3F)); };
  if (code_point < 0x80) return {byte(code_point)};
  if (code_point < 0x800) return {byte(0xC0 | code_point >> 6), tail(0)};
  if (code_point < 0x10000) return {byte(0xE0 | code_point >> 12), tail(6), tail(0)};
  return {byte(0xF0 | code_point >> 18), tail(12), tail(6), tail(0)};
}

std::vector<ByteRanges> utf8_ranges(uint32_t first, uint32_t last) {
  std::vector<ByteRanges> ranges;
  constexpr std::pair<uint32_t, uint32_t> kByLength[] = {
      {0, 0x7F}, {0x80, 0x7FF}, {0x800, 0xD7FF}, {0xE000, 0xFFFF}, {0x10000, kCodePointMax}};
  for (const auto& [low, high] : kByLength) {
    if (first <= high && last >= low) {
      add_ranges(std::max(first, low), std::min(last, high), ranges);
    }
  }
  return ranges;
}

Patterns::Id Patterns::add(Node node) {
  if (nodes_.size() >= kNodesMax) {
    fail_usage("the pattern has more than {} parts: make it simpler", kNodesMax);
  }
  nodes_.push_back(std::move(node));
  return static_cast<Id>(nodes_.size() - 1);
}

Patterns::Id Patterns::bytes(std::string_view text) {
  return add({.kind = Kind::kBytes, .bytes = std::string(text)});
}
Patterns::Id Patterns::set(CodePoints points) {
  if (points.empty()) fail_usage("a set of characters is empty: nothing can match it");
  return add({.kind = Kind::kSet, .points = std::move(points)});
}
Patterns::Id Patterns::sequence(std::vector<Id> parts) {
  return add({.kind = Kind::kSequence, .parts = std::move(parts)});
}
Patterns::Id Patterns::choice(std::vector<Id> parts) {
  PELAGO_ASSERT(!parts.empty(), "a choice has something to choose from");
  return add({.kind = Kind::kChoice, .parts = std::move(parts)});
}
Patterns::Id Patterns::repeat(Id part, int64_t min, int64_t max) {
  if (min < 0 || (max >= 0 && max < min)) {
    fail_usage("a repetition of at least {} and at most {} times is impossible", min, max);
  }
  return add({.kind = Kind::kRepeat, .parts = {part}, .min = min, .max = max});
}

int32_t Patterns::rule_idx(const std::string& name) {
  const auto [found, is_new] = idx_of_rule_.emplace(name, static_cast<int32_t>(rules_.size()));
  if (is_new) rules_.push_back({.name = name});
  return found->second;
}
Patterns::Id Patterns::rule(const std::string& name) {
  return add({.kind = Kind::kRule, .rule = rule_idx(name)});
}
void Patterns::define(const std::string& name, Id pattern) {
  rules_[static_cast<size_t>(rule_idx(name))].pattern = pattern;
}
bool Patterns::is_defined(const std::string& name) const {
  const auto found = idx_of_rule_.find(name);
  return found != idx_of_rule_.end() && rules_[static_cast<size_t>(found->second)].pattern >= 0;
}
Patterns::Id Patterns::definition(int32_t rule) const {
  const Rule& found = rules_[static_cast<size_t>(rule)];
  if (found.pattern < 0) fail_usage("the rule \"{}\" is used but not defined", found.name);
  return found.pattern;
}

}  // namespace pelago::serve
