// A set of whole numbers kept as ranges: a run's data steps come in a few long ones.
#pragma once

#include <cstdint>
#include <map>

namespace pelago::sites {

/// [begin, end); empty if end <= begin.
struct StepRange {
  int64_t begin = 0;
  int64_t end = 0;
};

class RangeSet {
 public:
  /// Returns how many numbers of the range were in the set before.
  int64_t add(StepRange range);
  int64_t count() const;
  /// How many numbers of the range are in the set.
  int64_t count_in(StepRange range) const;
  /// One past the largest; 0 if empty.
  int64_t end() const { return ranges_.empty() ? 0 : ranges_.rbegin()->second; }
  RangeSet intersect(const RangeSet& other) const;

 private:
  std::map<int64_t, int64_t> ranges_;  // begin -> end; disjoint, with gaps between
};

}  // namespace pelago::sites
