// The few numbers of a model that every estimate of time and memory is made of, and what one stage
// of a pipeline holds of it.
#pragma once

#include <cstdint>
#include <vector>

#include "model/config.h"
#include "plan/job.h"

namespace pelago::plan {

struct ModelSizes {
  double hidden = 0, feed_forward = 0, vocab = 0;
  double query = 0, key = 0;  // values of all heads, a token
  double query_heads = 0, key_heads = 0;
  double tokens = 0;  // of a sequence
  bool is_tied = true;
  bool has_qk_norm = true;
  bool has_bias = false;
  int64_t num_blocks = 0;
  // A mixture of experts: feed_forward is one expert's width. 1 and 1: dense.
  double experts = 1, experts_per_token = 1;
  bool is_dense() const { return experts == 1; }
};
ModelSizes sizes_of(const model::ModelConfig& config, int64_t sequence_length);
/// The same with the job's experts.
ModelSizes sizes_of(const JobConfig& job, int64_t sequence_length);

/// What one rank holds: a run of blocks, cut over `width` ranks.
struct StageShape {
  int64_t num_blocks = 0;
  int64_t width = 1;
  bool has_embedding = false;
  bool has_head = false;
  bool recompute = false;
  bool operator==(const StageShape&) const = default;
};

/// Matrices of one shape among a block's parameters. The first dimension is that of what comes out.
struct BlockMatrix {
  double rows = 0, columns = 0;
  double count = 1;
};
std::vector<BlockMatrix> block_matrices(const ModelSizes& sizes);

/// Values of one block on one of `width` ranks: matrices are cut, norms are not.
double block_values(const ModelSizes& sizes, double width);
/// Values that a rank holds. A tied embedding is held at both ends of the model.
double held_values(const ModelSizes& sizes, const StageShape& shape);
/// Runs of neighbouring parameters that decay, or do not: an optimizer takes each by itself.
double update_runs(const ModelSizes& sizes, const StageShape& shape);
/// Those of a block that decay: its matrices. As many do not.
double decaying_runs(const ModelSizes& sizes);
/// Gradients are added up in buckets of about so many values: large enough to hide the latency of a
/// reduction (1 to 16 MB), small enough that a model has a dozen, of which all but the last overlap
/// with backward.
double usual_bucket_values(double num_parameters);
/// True if heads, feed-forward width and sequence length can be cut over so many ranks.
bool can_be_cut(const ModelSizes& sizes, int64_t width);

}  // namespace pelago::plan
