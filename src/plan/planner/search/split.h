// How the blocks of a model are cut over the stages of a pipeline. Memory is a hard limit: a stage
// takes as many blocks as fit, and recomputes only if it must. Exact: the least possible time of
// the slowest stage is found by bisection over all times that any stage can have; of the cuts that
// reach it, the one with the least sum of times, by dynamic programming over what the stages take
// less than they could.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace pelago::plan {

/// Times in seconds for one microbatch, forward and backward.
struct StageLimits {
  double fixed_s = 0;
  double block_s = 0;                 // of each block that it keeps
  double recomputed_block_s = 0;      // of each block if it recomputes
  int64_t blocks_max = 0;             // that fit without recomputing; 0: it must not
  int64_t recomputed_blocks_max = 0;  // that fit with it; 0: it must not
  int64_t most() const {
    return blocks_max > recomputed_blocks_max ? blocks_max : recomputed_blocks_max;
  }
  double time_s(int64_t num_blocks) const {
    return num_blocks <= blocks_max
               ? fixed_s + static_cast<double>(num_blocks) * block_s
               : fixed_s + static_cast<double>(num_blocks) * recomputed_block_s;
  }
};

/// Blocks of each stage, at least one; none if the model does not fit.
std::optional<std::vector<int64_t>> split_blocks(const std::vector<StageLimits>& stages,
                                                 int64_t num_blocks);

/// All cuts if there are at most so many. Else the same as above, and cuts whose slowest stage is
/// slower but the sum of times less, which suits few microbatches. Each once.
std::vector<std::vector<int64_t>> split_variants(const std::vector<StageLimits>& stages,
                                                 int64_t num_blocks,
                                                 size_t most);

}  // namespace pelago::plan
