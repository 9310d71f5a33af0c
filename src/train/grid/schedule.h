// The order of a stage's work in one step, one forward one backward (1F1B; PipeDream-Flush,
// arXiv:2006.09503): after as many forwards as there are stages behind it, a stage goes forward and
// backward in turn. So stage s of S keeps at most S - s microbatches in memory, and no more wait
// than the pipeline needs to be full. Where a line between sites lies behind it, a stage goes
// further ahead, so that microbatches on their way leave nobody without work.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace pelago::train {

struct Turn {
  bool is_forward = true;
  int64_t microbatch_idx = 0;
};

/// in_flight: microbatches that the stage keeps at most, no fewer than the next stage.
inline std::vector<Turn> one_forward_one_backward(int64_t in_flight, int64_t num_microbatches) {
  const int64_t num_ahead = std::min(in_flight, num_microbatches);
  std::vector<Turn> turns;
  for (int64_t i = 0; i < num_microbatches + num_ahead - 1; ++i) {
    if (i < num_microbatches) turns.push_back({true, i});
    if (i >= num_ahead - 1 && i - num_ahead + 1 < num_microbatches) {
      turns.push_back({false, i - num_ahead + 1});
    }
  }
  return turns;
}

}  // namespace pelago::train
