// One block of the transformer: attention and feed-forward, each behind a norm. Tokens of all
// sequences lie in one [B*T,D] matrix, so that every projection is one large matmul; only attention
// sees [B,T,H,E].
//
// The residual stream is added up by the norm that reads it (add_rms_norm is one pass over [B*T,D],
// an addition and a norm would be two). So what goes from block to block is a pair: the stream, and
// what the block before feeds into it. Where a block's input must be one tensor, because it goes to
// another device or is kept for recomputing, it is their sum, with no stream beside it.
//
// With tensor parallelism (arXiv:1909.08053, arXiv:2205.05198) a rank holds whole heads and a run
// of the feed-forward's columns. Between the two halves of a block a rank keeps only its slice of
// the tokens, so that norms and residuals are cut as well; in front of each half the slices are
// gathered, behind it the ranks' partial results are summed and scattered.
#pragma once

#include "chips/collective.h"
#include "chips/tensor.h"
#include "chips/torch.h"
#include "model/config.h"
#include "model/generation/kv_cache.h"
#include "model/layers/rope.h"
#include "model/parameters.h"

namespace pelago::model {

/// What goes from block to block; N is B*T, or this rank's slice of it.
struct BlockState {
  Tensor fed;     // [N,D]
  Tensor stream;  // [N,D]; undefined: nothing to add `fed` to
  /// fed + stream, as the next norm would add them.
  Tensor sum() const { return stream.defined() ? fed + stream : fed; }
};

struct BlockOptions {
  RopeTable::Rows rope;                       // of the T positions
  KvCache* cache = nullptr;                   // generation
  int64_t layer_idx = 0;                      // in the cache
  chips::Collective* tensor_group = nullptr;  // outlives the backward pass; null: one rank
};

BlockState run_block(const ModelConfig& config,
                     const BlockWeights& weights,
                     const BlockState& input,
                     const BlockOptions& options);

/// The norm behind the last block. Returns [N,D].
Tensor final_norm(const ModelConfig& config, const Tensor& weight, const BlockState& input);

}  // namespace pelago::model
