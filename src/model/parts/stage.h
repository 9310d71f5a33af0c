// A part of the model at work: microbatches go forward through its blocks, and later, in the order
// they came or another, backward. Each block is its own piece of autograd's graph, cut off from the
// next by detaching what goes between. So a block's memory is free as soon as it is done, its
// gradients are whole at a moment that is known (a reduction can begin while earlier blocks are
// still computing), and recomputing a block is running its piece a second time.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "chips/collective.h"
#include "chips/tensor.h"
#include "chips/torch.h"
#include "model/config.h"
#include "model/layers/block.h"
#include "model/layers/rope.h"
#include "model/parameters.h"

namespace pelago::model {

/// N is B*T, or with tensor parallelism this rank's slice of it.
struct StageInput {
  int64_t batch = 0;       // B
  int64_t num_tokens = 0;  // T
  Tensor tokens;           // [B,T] int64 on the device: read by a part with the embedding
  Tensor targets;          // [B,T] int64 on the device: read by a part with the head
  Tensor hidden;           // [N,D]: what the part before sent; read by all others
};

/// A microbatch that went forward: its result, and what going backward needs.
class StagePass {
 public:
  /// [N,D] for the part behind; of a part with the head the f32 sum of this rank's token losses.
  Tensor output;
  /// f32, no dimensions: the largest magnitude of the residual stream at the end of this part.
  /// Undefined if nothing is kept for going backward.
  Tensor peak;
  StagePass() = default;
  StagePass(StagePass&&) = default;
  StagePass& operator=(StagePass&&) = default;

 private:
  friend class Stage;
  /// A block (or the head): what came in, as leaves, and what went out. Recomputing drops the
  /// latter.
  struct Link {
    BlockState input, output;
  };
  std::vector<Link> links_;  // of the blocks
  Link head_;
  Tensor tokens_;  // [N] of the embedding
  RopeTable::Rows rope_;
};

/// For tests of what notices faults: sees what block block_idx of the part makes, its output going
/// forward or its input's gradient going backward, and may change it.
using Tamper = std::function<void(bool is_forward, size_t block_idx, Tensor& values)>;

struct StageOptions {
  bool recompute = false;  // keep what enters a block, compute the block again going backward
  chips::Collective* tensor_group = nullptr;  // of the stage's ranks, outlives it; null: one rank
  Tamper tamper = nullptr;
};

class Stage {
 public:
  /// parameters outlives the stage.
  Stage(const ModelConfig& config, Parameters& parameters, const StageOptions& options);

  /// Under NoGradGuard nothing is kept.
  StagePass forward(const StageInput& input);

  /// Units of a model: 0 is the embedding, 1 + b block b, 1 + L final norm and head.
  using OnUnitDone = std::function<void(int64_t unit_idx)>;
  /// Adds gradients to flat_gradient, f32 [N] on the device in the order of parameters.flat(), and
  /// calls on_done whenever those of a unit are there. output_gradient: [N,D] in any float dtype;
  /// of a part with the head ignored, its losses then count `scale` times. Returns the gradient of
  /// input.hidden, undefined for a part with the embedding. A pass goes backward once.
  Tensor backward(StagePass&& pass,
                  const Tensor& output_gradient,
                  double scale,
                  Tensor& flat_gradient,
                  const OnUnitDone& on_done);

 private:
  BlockState run(size_t block_idx, const BlockState& input, const RopeTable::Rows& rope);
  Tensor own_slice(const Tensor& of_all_tokens) const;

  ModelConfig config_;
  Parameters* parameters_;  // outlives me
  StageOptions options_;
  RopeTable rope_;
};

}  // namespace pelago::model
