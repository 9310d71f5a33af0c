// Rank 0's part in a checkpoint: from a slot of shared memory, in which all ranks put their state
// while the next step computes, to files, on a thread of its own.
//   begun     some rank is still copying: poll() between steps sees when none is
//   writing   the slot stays as it is, so there are no other snapshots
//   (idle)    the supervisor was told, or a warning was given; training goes on either way
#pragma once

#include <filesystem>
#include <functional>
#include <optional>

#include "train/checkpoint.h"
#include "train/process/control.h"
#include "train/process/host_state.h"
#include "train/saving/background_task.h"

namespace pelago::train {

class CheckpointWriter {
 public:
  /// control outlives the writer.
  CheckpointWriter(std::filesystem::path checkpoints_dir, Control& control)
      : checkpoints_dir_(std::move(checkpoints_dir)), control_(&control) {}

  struct Begun {
    HostState state;  // holds what is to be written once is_whole() says so
    TrainState counters;
    std::function<bool()> is_whole;
    std::function<void()> complete;  // called before writing, on the writer's thread; may throw
  };
  /// Not while is_busy().
  void begin(Begun begun);
  /// Call it between steps. Returns whether the writing began now.
  bool poll();
  bool is_busy() const { return begun_.has_value() || writing_.is_running(); }
  /// Until the files are there. Whatever was begun must be whole.
  void wait();

 private:
  void write(const Begun& begun);

  std::filesystem::path checkpoints_dir_;
  Control* control_;
  std::optional<Begun> begun_;
  BackgroundTask writing_;  // last: it uses the members above
};

}  // namespace pelago::train
