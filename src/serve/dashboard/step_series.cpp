#include "serve/dashboard/step_series.h"

#include <algorithm>

namespace pelago::serve {

void StepSums::add(const StepSums& other) {
  if (num_steps == 0) first_step = other.first_step;
  num_steps += other.num_steps;
  last_step = other.last_step;
  time_s = other.time_s;
  lr = other.lr;
  loss_tokens += other.loss_tokens;
  counted_tokens += other.counted_tokens;
  grad_norm += other.grad_norm;
  tokens += other.tokens;
  step_s += other.step_s;
  wait_line_s += other.wait_line_s;
  reduce_s += other.reduce_s;
  skipped += other.skipped;
  if (ranks.size() < other.ranks.size()) ranks.resize(other.ranks.size());
  for (size_t rank = 0; rank < other.ranks.size(); ++rank) {
    RankSums& sums = ranks[rank];
    const RankSums& more = other.ranks[rank];
    sums.device = more.device;
    sums.tokens += more.tokens;
    sums.compute_s += more.compute_s;
    sums.wait_stages_s += more.wait_stages_s;
    sums.wait_ranks_s += more.wait_ranks_s;
    sums.late_s += more.late_s;
    sums.host_busy_s += more.host_busy_s;
    sums.peak_memory_bytes = std::max(sums.peak_memory_bytes, more.peak_memory_bytes);
  }
}

void StepSums::scale(double share) {
  for (double* sum : {&num_steps,
                      &loss_tokens,
                      &counted_tokens,
                      &grad_norm,
                      &tokens,
                      &step_s,
                      &wait_line_s,
                      &reduce_s,
                      &skipped}) {
    *sum *= share;
  }
  for (RankSums& rank : ranks) {
    for (double* sum : {&rank.tokens,
                        &rank.compute_s,
                        &rank.wait_stages_s,
                        &rank.wait_ranks_s,
                        &rank.late_s,
                        &rank.host_busy_s}) {
      *sum *= share;
    }
  }
}

void StepSeries::add(const StepSums& step, uint64_t version) {
  if (!buckets_.empty() && step.first_step <= buckets_.back().last_step) {
    give_up_from(step.first_step, version);
  }
  totals_.add(step);
  const auto bucket_of = [&](int64_t completed) { return (completed - 1) / stride_; };
  if (!buckets_.empty() && bucket_of(step.first_step) == bucket_of(buckets_.back().first_step)) {
    buckets_.back().add(step);
    changed_.back() = version;
  } else {
    buckets_.push_back(step);
    changed_.push_back(version);
    if (buckets_.size() > num_buckets_max_) join_neighbours(version);
  }
}

void StepSeries::give_up_from(int64_t step, uint64_t version) {
  num_repeated_ += buckets_.back().last_step - step + 1;
  while (!buckets_.empty() && buckets_.back().first_step >= step) {
    buckets_.pop_back();
    changed_.pop_back();
  }
  if (buckets_.empty() || buckets_.back().last_step < step) return;
  StepSums& last = buckets_.back();
  last.scale(static_cast<double>(step - last.first_step) /
             static_cast<double>(last.last_step - last.first_step + 1));
  last.last_step = step - 1;
  changed_.back() = version;
}

void StepSeries::join_neighbours(uint64_t version) {
  stride_ *= 2;
  std::vector<StepSums> joined;
  for (const StepSums& bucket : buckets_) {
    if (!joined.empty() &&
        (joined.back().first_step - 1) / stride_ == (bucket.first_step - 1) / stride_) {
      joined.back().add(bucket);
    } else {
      joined.push_back(bucket);
    }
  }
  buckets_ = std::move(joined);
  changed_.assign(buckets_.size(), version);
}

size_t StepSeries::changed_since(uint64_t version) const {
  const auto changed =
      std::find_if(changed_.begin(), changed_.end(), [&](uint64_t when) { return when > version; });
  return static_cast<size_t>(changed - changed_.begin());
}

}  // namespace pelago::serve
