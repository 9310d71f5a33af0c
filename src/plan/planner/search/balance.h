// How a batch of whole sequences is cut over devices of unlike pace so that the slowest ends as
// early as whole sequences allow. Sites wait for each other at exchanges just as the devices of a
// site wait at the reduction, so one time binds all devices of all sites, and sites need no level
// of their own in the search.
//
// The search is exact. With one sequence a device to begin with, each further sequence goes to the
// device that would end first with it; after k of them the largest end is the least possible for
// that many sequences (an exchange argument: any other cut gives some device one more than it has
// here, and that device would end no earlier). So one pass visits the best cut of every total, and
// the total with the most sequences a second wins. O(batch log devices).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace pelago::plan {

/// A step of n sequences takes n * sequence_s + (microbatches of n) * microbatch_s + step_s.
struct Pace {
  double sequence_s = 0;       // > 0
  double step_s = 0;           // >= 0
  double microbatch_s = 0;     // >= 0
  int64_t microbatch_max = 1;  // sequences of the largest microbatch
  double time_s(int64_t sequences) const {
    const int64_t num_microbatches = (sequences + microbatch_max - 1) / microbatch_max;
    return static_cast<double>(sequences) * sequence_s +
           static_cast<double>(num_microbatches) * microbatch_s + step_s;
  }
};

/// How far the planner may move the batch: a tenth of what was asked, either way.
struct BatchRange {
  int64_t asked = 0;
  int64_t lo() const { return (9 * asked + 9) / 10; }
  int64_t hi() const { return 11 * asked / 10; }
};

struct Balance {
  std::vector<int64_t> sequences;  // of each device, at least 1
  int64_t batch = 0;               // their sum
  double step_s = 0;               // of the slowest device
  double sequences_a_second() const { return static_cast<double>(batch) / step_s; }
};

/// The cut with the most sequences a second among all batches of the range; of equals, the batch
/// nearest to the one asked for. devices: at least one and no more than range.hi().
Balance balance_batch(std::span<const Pace> devices, const BatchRange& range);

}  // namespace pelago::plan
