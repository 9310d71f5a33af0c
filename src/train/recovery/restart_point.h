// Where a site can go on from when it lost a device, without the other sites noticing. Steps that
// it repeats must not send a fragment a second time, and must find the merges that they wait for.
// A merge lies in shared memory until the next exchange of the same fragment, so steps of less than
// a whole round can be repeated.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "train/messages.h"

namespace pelago::train {

/// What has crossed the site's border.
struct ExchangeLog {
  int64_t sent = -1;         // the newest exchange whose snapshot was given to the agent
  std::set<int64_t> merged;  // exchanges whose merge was given to the workers
};

/// The fragment of an exchange, and the completed steps after which its merge is taken: for the
/// final exchanges all steps of the run, and then some.
int64_t fragment_of(const ExchangeSchedule& schedule, int64_t exchange_idx);
int64_t merge_step(const ExchangeSchedule& schedule, int64_t exchange_idx);

/// Merges that workers need again who go on after `step` completed steps.
std::vector<int64_t> merges_after(const ExchangeSchedule& schedule,
                                  const ExchangeLog& log,
                                  int64_t step);
/// Whether all of them are still in shared memory.
bool can_repeat_from(const ExchangeSchedule& schedule, const ExchangeLog& log, int64_t step);

}  // namespace pelago::train
