#include "train/recovery/restart_point.h"

namespace pelago::train {

int64_t fragment_of(const ExchangeSchedule& schedule, int64_t exchange_idx) {
  const int64_t num_regular = schedule.num_regular();
  return exchange_idx < num_regular ? exchange_idx % schedule.num_fragments
                                    : exchange_idx - num_regular;
}

int64_t merge_step(const ExchangeSchedule& schedule, int64_t exchange_idx) {
  if (exchange_idx >= schedule.num_regular()) return schedule.num_steps + 1;
  return (exchange_idx + 1) * schedule.interval() + schedule.overlap_steps;
}

std::vector<int64_t> merges_after(const ExchangeSchedule& schedule,
                                  const ExchangeLog& log,
                                  int64_t step) {
  std::vector<int64_t> exchanges;
  for (const int64_t exchange_idx : log.merged) {
    if (merge_step(schedule, exchange_idx) > step) exchanges.push_back(exchange_idx);
  }
  return exchanges;
}

bool can_repeat_from(const ExchangeSchedule& schedule, const ExchangeLog& log, int64_t step) {
  std::set<int64_t> fragments;
  for (const int64_t exchange_idx : merges_after(schedule, log, step)) {
    if (!fragments.insert(fragment_of(schedule, exchange_idx)).second) return false;
  }
  return true;
}

}  // namespace pelago::train
