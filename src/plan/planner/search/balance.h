// How a batch of whole sequences is cut over pipelines of unlike pace so that the slowest ends as
// early as whole sequences allow. Sites wait for each other at exchanges just as the pipelines of
// a site wait at the reduction, so one time binds all pipelines of all sites, and sites need no
// level of their own in the search.
//
// The search is exact. With one sequence a pipeline to begin with, each further sequence goes to
// the one that would end first with it; after k of them the largest end is the least possible for
// that many sequences (an exchange argument: any other cut gives some pipeline one more than it has
// here, and that one would end no earlier). So one pass visits the best cut of every total, and
// the total with the most sequences a second wins. O(batch log pipelines).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "plan/planner/search/pace.h"

namespace pelago::plan {

/// How far the planner may move the batch: a tenth of what was asked, either way; not at all once a
/// run has begun.
struct BatchRange {
  int64_t asked = 0;
  bool is_fixed = false;
  int64_t lo() const { return is_fixed ? asked : (9 * asked + 9) / 10; }
  int64_t hi() const { return is_fixed ? asked : 11 * asked / 10; }
};

struct Balance {
  std::vector<int64_t> sequences;  // of each pipeline, at least 1
  int64_t batch = 0;               // their sum
  double step_s = 0;               // of the slowest one
  double sequences_a_second() const { return static_cast<double>(batch) / step_s; }
};

/// The cut with the most sequences a second among all batches of the range; of equals, the batch
/// nearest to the one asked for. pipelines: at least one and no more than range.hi().
Balance balance_batch(std::span<const Pace> pipelines, const BatchRange& range);

}  // namespace pelago::plan
