#include "train/recovery/snapshots.h"

#include <algorithm>

namespace pelago::train {

namespace {

constexpr double kCostMax = 0.005;         // of the time; beyond it, snapshots become rarer
constexpr double kCostLow = kCostMax / 3;  // below it, they may come twice as often
constexpr int64_t kRarestFactor = 8;
constexpr int kJudged = 8;  // snapshots together

}  // namespace

Snapshots::Snapshots(
    SharedWeights& shared, Trainer& trainer, size_t rank, size_t num_ranks, int64_t every_steps)
    : shared_(&shared),
      trainer_(&trainer),
      rank_(rank),
      num_ranks_(num_ranks),
      every_steps_(every_steps),
      pace_(every_steps) {}

// Of eight together, not of one alone: a host that was busy for some milliseconds is no reason.
void SnapshotPace::on_begin(double now_s, double storing_s) {
  if (num_begun_++ % kJudged != 0) return;
  if (num_begun_ > 1) {
    const double share = (storing_s - storing_s_) / (now_s - begun_s_);
    if (share > kCostMax) {
      period_steps_ = std::min(2 * period_steps_, kRarestFactor * every_steps_);
    } else if (share < kCostLow) {
      period_steps_ = std::max(period_steps_ / 2, every_steps_);
    }
  }
  storing_s_ = storing_s;
  begun_s_ = now_s;
}

void Snapshots::resume_from(size_t slot_idx, int64_t step) {
  next_slot_ = 1 - slot_idx;
  last_step_ = step;
}

bool Snapshots::is_due(int64_t step, double now_s) {
  if (every_steps_ == 0) return false;
  if (last_step_ >= 0) {
    if (step - last_step_ < pace_.period_steps()) return false;
    // Until all have written the last one, the one before it is all there is.
    if (!shared_->board().whole_slot(1 - next_slot_, num_ranks_)) return false;
  }
  pace_.on_begin(now_s, trainer_->storing_s());
  return true;
}

void Snapshots::mark(size_t slot_idx, const TrainState& state) {
  if (rank_ == 0) {
    shared_->board().counters(slot_idx) = {.tokens = state.tokens,
                                           .adam_steps = state.adam_steps,
                                           .loss_scale = state.loss_scale,
                                           .loss_scale_steps = state.loss_scale_steps};
  }
  shared_->board().finish_slot(slot_idx, rank_, state.step);
}

size_t Snapshots::begin(const TrainState& state) {
  const size_t slot_idx = next_slot_;
  next_slot_ = 1 - next_slot_;
  last_step_ = state.step;
  shared_->board().begin_slot(slot_idx, rank_);
  trainer_->store_behind(shared_->snapshot(slot_idx),
                         [this, slot_idx, state] { mark(slot_idx, state); });
  return slot_idx;
}

HostState Snapshots::begin_at_once() {
  trainer_->finish_storing();
  shared_->board().begin_slot(next_slot_, rank_);
  return shared_->snapshot(next_slot_);
}

size_t Snapshots::finish_at_once(const TrainState& state) {
  const size_t slot_idx = next_slot_;
  mark(slot_idx, state);
  next_slot_ = 1 - next_slot_;
  last_step_ = state.step;
  return slot_idx;
}

}  // namespace pelago::train
