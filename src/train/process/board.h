// What the ranks of a site show their supervisor without a message, in shared memory: signs of
// life, and which snapshots of the site's state are whole. A rank that is stuck or dead can send
// nothing, but what it last wrote here can still be read.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace pelago::train {

/// What a snapshot holds beside weights and moments.
struct SnapshotCounters {
  int64_t tokens = 0;
  int64_t adam_steps = 0;
  double loss_scale = 0;
  int64_t loss_scale_steps = 0;
};

class SiteBoard {
 public:
  static constexpr size_t kRanksMax = 1024;
  static constexpr size_t kSlots = 2;

  /// Counts upwards while the rank gets on with its work.
  std::atomic<uint64_t>& pulse(size_t rank) { return pulses_[rank]; }
  /// The last question of the supervisor that the rank's device answered.
  std::atomic<int64_t>& answer(size_t rank) { return answers_[rank]; }

  /// The rank is about to overwrite its part of a slot.
  void begin_slot(size_t slot_idx, size_t rank) { mark(slot_idx, rank) = 0; }
  /// The rank has written its part of the state after `step` steps. Rank 0 gives the counters
  /// first.
  void finish_slot(size_t slot_idx, size_t rank, int64_t step) { mark(slot_idx, rank) = step + 1; }
  SnapshotCounters& counters(size_t slot_idx) { return slots_[slot_idx].counters; }
  /// The completed steps of a slot that all ranks have written; nothing while one has not.
  std::optional<int64_t> whole_slot(size_t slot_idx, size_t num_ranks) {
    const int64_t first = mark(slot_idx, 0);
    for (size_t rank = 1; rank < num_ranks; ++rank) {
      if (mark(slot_idx, rank) != first) return std::nullopt;
    }
    if (first == 0) return std::nullopt;
    return first - 1;
  }
  /// For a new set of ranks: the slot is whole for them, or empty.
  void reset_slot(size_t slot_idx, std::optional<int64_t> step) {
    for (size_t rank = 0; rank < kRanksMax; ++rank) mark(slot_idx, rank) = step ? *step + 1 : 0;
  }

 private:
  /// 0: not whole; else completed steps + 1. Sequentially consistent: what was written before a
  /// mark is seen by whoever reads the mark.
  std::atomic<int64_t>& mark(size_t slot_idx, size_t rank) { return slots_[slot_idx].marks[rank]; }

  struct Slot {
    std::array<std::atomic<int64_t>, kRanksMax> marks;
    SnapshotCounters counters;
  };
  std::array<std::atomic<uint64_t>, kRanksMax> pulses_;
  std::array<std::atomic<int64_t>, kRanksMax> answers_;
  std::array<Slot, kSlots> slots_;
};
static_assert(std::atomic<int64_t>::is_always_lock_free, "processes share these");

}  // namespace pelago::train
