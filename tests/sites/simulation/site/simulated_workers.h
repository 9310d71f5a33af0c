// The workers of a simulated site: arithmetic in place of training.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

namespace pelago::sites {

/// Moves as workers do: steps, snapshots, waits for merges, takes them half and half.
struct SimulatedWorkers {
  std::vector<float> local, snapshot;
  std::map<int64_t, std::vector<int64_t>> shares;  // by the data step from which they hold
  int64_t completed_steps = 0;
  int64_t saved_step = -1;      // of the newest checkpoint
  int64_t data_shift = 0;       // data step less step
  int64_t others_step = 0;      // that the others have completed: what lies before is left out
  int64_t first_exchange = 0;   // what earlier ones gave is in the weights
  int64_t final_fragment = -1;  // the last exchanges, one after another
  std::optional<int64_t> waits_for;
  std::optional<int64_t> stop_step;
  double next_step_s = 0;
  bool trains = false;
  bool has_finished = false;
};

}  // namespace pelago::sites
