// A rank's part in the site's snapshots: whole copies of weights and optimizer state in memory that
// outlives the workers, so that a lost device costs a few steps. Two slots take turns; each rank
// writes its own slices while the next step computes, and marks them on the board when they are
// there. A slot counts once all ranks have marked it, and the other is only begun then.
#pragma once

#include <cstddef>
#include <cstdint>

#include "train/checkpoint.h"
#include "train/process/shared_weights.h"
#include "train/rank/trainer.h"

namespace pelago::train {

/// How many steps lie between two, by what they cost.
class SnapshotPace {
 public:
  explicit SnapshotPace(int64_t every_steps)
      : every_steps_(every_steps), period_steps_(every_steps) {}
  int64_t period_steps() const { return period_steps_; }
  /// Another one begins. storing_s: what all before have cost.
  void on_begin(double now_s, double storing_s);

 private:
  int64_t every_steps_, period_steps_;
  int num_begun_ = 0;     // eight at a time are judged
  double begun_s_ = 0;    // when the first of these eight was
  double storing_s_ = 0;  // what all had cost until then
};

class Snapshots {
 public:
  /// shared and trainer outlive this. every_steps: 0: none but those of checkpoints.
  Snapshots(
      SharedWeights& shared, Trainer& trainer, size_t rank, size_t num_ranks, int64_t every_steps);

  /// The workers went on from this slot.
  void resume_from(size_t slot_idx, int64_t step);
  /// Whether to begin one now: rank 0 decides for all. now_s: to see what they cost.
  bool is_due(int64_t step, double now_s);
  /// Begins one of the state as it is, behind the next step. All ranks together. Returns its slot.
  size_t begin(const TrainState& state);
  /// Before the ranks are asked to write the next slot at once: the other one is whole on this
  /// rank.
  HostState begin_at_once();
  /// Returns its slot.
  size_t finish_at_once(const TrainState& state);
  /// Whether all ranks have written that state to that slot.
  bool is_whole(size_t slot_idx, int64_t step) const {
    return shared_->board().whole_slot(slot_idx, num_ranks_) == step;
  }

 private:
  void mark(size_t slot_idx, const TrainState& state);

  SharedWeights* shared_;
  Trainer* trainer_;
  size_t rank_, num_ranks_;
  int64_t every_steps_;
  SnapshotPace pace_;
  size_t next_slot_ = 0;
  int64_t last_step_ = -1;  // of the newest begun; -1: none
};

}  // namespace pelago::train
