#include "sites/leases/range_set.h"

#include <algorithm>
#include <iterator>

namespace pelago::sites {

int64_t RangeSet::count() const {
  int64_t sum = 0;
  for (const auto& [begin, end] : ranges_) sum += end - begin;
  return sum;
}

int64_t RangeSet::count_in(StepRange range) const {
  int64_t sum = 0;
  for (const auto& [begin, end] : ranges_) {
    sum += std::max<int64_t>(0, std::min(end, range.end) - std::max(begin, range.begin));
  }
  return sum;
}

int64_t RangeSet::add(StepRange range) {
  if (range.end <= range.begin) return 0;
  const int64_t before = count_in(range);
  auto next = ranges_.upper_bound(range.begin);
  if (next != ranges_.begin() && std::prev(next)->second >= range.begin) --next;
  while (next != ranges_.end() && next->first <= range.end) {
    range.begin = std::min(range.begin, next->first);
    range.end = std::max(range.end, next->second);
    next = ranges_.erase(next);
  }
  ranges_.emplace(range.begin, range.end);
  return before;
}

RangeSet RangeSet::intersect(const RangeSet& other) const {
  RangeSet both;
  for (const auto& [begin, end] : ranges_) {
    for (const auto& [other_begin, other_end] : other.ranges_) {
      both.add({.begin = std::max(begin, other_begin), .end = std::min(end, other_end)});
    }
  }
  return both;
}

}  // namespace pelago::sites
