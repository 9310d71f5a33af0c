#include "plan/cost/memory.h"

#include <algorithm>

namespace pelago::plan {

namespace {

/// Bytes taken and given back in the order of the trainer; the most at once is what counts.
class Ledger {
 public:
  void take(double bytes) { peak_ = std::max(peak_, used_ += bytes); }
  void give(double bytes) { used_ -= bytes; }
  double peak() const { return peak_; }

 private:
  double used_ = 0;
  double peak_ = 0;
};

/// The tensors of one block and one microbatch on one rank, in bytes. Names as in run_block().
struct BlockBytes {
  double stream, normed;   // [N,D]: cut over the ranks of the stage; normed is gathered
  double norm_scale;       // [N] f32
  double qkv, query, key;  // [N,(H+2K)E], [N,HE], [N,KE]
  double head_scales;      // of the norms of q and k
  double log_sum_exp;      // [B,H,T] f32
  double gate_up, gated;   // [N,2F], [N,F]
  double weights;          // the block's gradients before they are added up
  double largest_weight;
  double routed = 0;  // the tokens in the order of their experts

  /// Kept for backward: input and output norm's sums, what each product read, and attention.
  double kept() const {
    return 2 * stream + 2 * normed + 2 * norm_scale + qkv + 2 * query + key + head_scales +
           log_sum_exp + gate_up + gated + routed;
  }
};

BlockBytes block_bytes(const ModelSizes& sizes, double width, const StageLoad& load) {
  const double tokens = sizes.tokens * static_cast<double>(load.microbatch);
  const double row = tokens * load.value_bytes;
  BlockBytes bytes{};
  bytes.stream = row * sizes.hidden / width;
  bytes.normed = row * sizes.hidden;
  bytes.norm_scale = 4 * tokens / width;
  bytes.query = row * sizes.query / width;
  bytes.key = row * sizes.key / width;
  bytes.qkv = bytes.query + 2 * bytes.key;
  bytes.head_scales =
      sizes.has_qk_norm ? 4 * tokens * (sizes.query_heads + sizes.key_heads) / width : 0;
  bytes.log_sum_exp = 4 * tokens * sizes.query_heads / width;
  // A token's copies for its experts, each with what that expert makes of it.
  bytes.gated = row * sizes.experts_per_token * sizes.feed_forward / width;
  bytes.gate_up = 2 * bytes.gated;
  bytes.weights = load.value_bytes * block_values(sizes, width);
  bytes.largest_weight =
      load.value_bytes * 2 * sizes.hidden * sizes.feed_forward * sizes.experts / width;
  if (!sizes.is_dense()) bytes.routed = row * sizes.experts_per_token * sizes.hidden / width;
  return bytes;
}

/// Without kernels of its own a chip makes the probabilities of all heads and their gradient in
/// f32, with one product between them.
double composite_attention(const ModelSizes& sizes, double width, const StageLoad& load) {
  if (load.has_fused_kernels) return 0;
  return 3 * 4 * static_cast<double>(load.microbatch) * sizes.tokens * sizes.tokens *
         sizes.query_heads / width;
}

/// What going back through one block takes on top of what was kept of it.
double block_backward_peak(const BlockBytes& bytes, double attention) {
  Ledger ledger;
  ledger.take(2 * bytes.stream);  // gradients of what it fed and of the stream
  // The feed-forward half: through down, SwiGLU, gate and up.
  ledger.take(bytes.gated);
  ledger.take(bytes.largest_weight / 2);
  ledger.give(bytes.gated);  // what down read
  ledger.take(bytes.gate_up);
  ledger.give(bytes.gate_up + bytes.gated);
  ledger.take(bytes.normed);
  ledger.take(bytes.largest_weight);
  ledger.give(bytes.normed + bytes.gate_up);
  ledger.take(bytes.stream);
  ledger.give(3 * bytes.stream + bytes.norm_scale);
  // The attention half, whose gradients of weights join those that are there already.
  ledger.take(bytes.query);
  ledger.give(bytes.query);
  ledger.take(attention + 2 * bytes.query + 2 * bytes.key);
  ledger.give(attention + bytes.query + bytes.key + bytes.log_sum_exp);
  ledger.take(bytes.qkv);
  ledger.take(bytes.qkv);
  ledger.give(2 * bytes.query + 2 * bytes.key + bytes.qkv);
  ledger.take(bytes.normed);
  ledger.take(std::max(0.0, bytes.weights - 1.5 * bytes.largest_weight));
  ledger.give(bytes.qkv);
  ledger.take(bytes.stream);
  return ledger.peak();
}

/// While a block goes forward: what it keeps, and two tensors that are gone when it is done.
double block_forward_peak(const BlockBytes& bytes, double attention) {
  return bytes.kept() + std::max(bytes.stream + bytes.normed, attention);
}

struct HeadBytes {
  double kept = 0;     // between forward and backward
  double working = 0;  // on top of it
};

HeadBytes head_bytes(const ModelSizes& sizes, const BlockBytes& block, const StageLoad& load) {
  const double grad_bytes = load.is_half ? 4 : load.value_bytes;
  const double grad_hidden = block.stream / load.value_bytes * grad_bytes;
  const double table = sizes.vocab * sizes.hidden;
  HeadBytes bytes;
  bytes.kept = block.stream + block.norm_scale + grad_hidden + grad_bytes * table;
  // Going backward, the kept gradients are scaled into tensors of their own, and in fp16 rounded
  // into two more; the hidden states that the loss was made of are gone by then.
  const double scaled = grad_hidden + grad_bytes * table +
                        (load.is_half ? load.value_bytes * table + block.stream : 0);
  bytes.working = scaled;
  if (!load.has_fused_kernels) {
    // A chunk of 512 tokens as four f32 values and a rounded one a logit, and the head's f32
    // gradient twice while it grows.
    const double tokens = sizes.tokens * static_cast<double>(load.microbatch);
    const double chunk = 18 * std::min(tokens, 512.0) * sizes.vocab;
    bytes.working = std::max(scaled, chunk + 8 * table);
  }
  return bytes;
}

/// The most that one matrix of a block takes while Muon steps it: the direction in f32 and its
/// rounded copy, then that one's successor and two squares of the smaller side.
double muon_bytes(const ModelSizes& sizes, const StageLoad& load) {
  double most = 0;
  for (const BlockMatrix& matrix : block_matrices(sizes)) {
    const double values = matrix.rows * matrix.columns;
    const double small = std::min(matrix.rows, matrix.columns);
    const double rounded = load.value_bytes < 4 ? load.value_bytes : 0;
    most = std::max({most,
                     (4 + rounded) * values,
                     5 * values,  // which elements of m are sound
                     2 * load.value_bytes * (values + small * small)});
  }
  return most;
}

}  // namespace

MemoryPlan stage_memory(const ModelSizes& sizes, const StageShape& shape, const StageLoad& load) {
  const double values = held_values(sizes, shape);
  const auto width = static_cast<double>(shape.width);
  const auto num_blocks = static_cast<double>(shape.num_blocks);
  const auto in_flight = static_cast<double>(load.in_flight);
  MemoryPlan memory;
  memory.weights = load.value_bytes * values;
  memory.gradients = 4 * values;
  // In f32 an unsliced master is the weights themselves.
  const bool has_master = load.value_bytes < 4;
  memory.optimizer = (has_master ? 12 : 8) * values * load.optimizer_share;

  if (load.is_scattered) {
    // What is reduced does not lie side by side, so it is gathered, and the new weights too.
    const double cut_values = num_blocks * block_values(sizes, width);
    memory.weights += load.value_bytes * cut_values;
    memory.gradients += 4 * cut_values;
  }

  const BlockBytes block = block_bytes(sizes, width, load);
  const double attention = composite_attention(sizes, width, load);
  // Each block hands two tensors on, its stream and what it feeds; the first counts with the next
  // block's sums, the second is kept until that block went backward.
  const double kept_by_block = shape.recompute ? block.stream : block.kept() + block.stream;
  const double tokens = sizes.tokens * static_cast<double>(load.microbatch);
  const double ids = (shape.has_embedding ? 8 * tokens : 0) + (shape.has_head ? 8 * tokens : 0);
  const double kept = num_blocks * kept_by_block + ids;
  const HeadBytes head = shape.has_head ? head_bytes(sizes, block, load) : HeadBytes{};
  memory.activations = in_flight * kept + head.kept;

  // Recomputing makes again what was not kept, before a head the two tensors handed on included,
  // and then goes backward through it.
  const double forward = shape.recompute ? block_forward_peak(block, attention)
                                         : block.stream + block.normed + attention;
  const double backward =
      block_backward_peak(block, attention) +
      (shape.recompute ? block.kept() + (shape.has_head ? 2 * block.stream : 0) : 0);
  // Messages come and go while little else is held; one may arrive early.
  const double border = load.is_alone ? 0 : block.stream;
  const double embedding = shape.has_embedding ? 2 * block.stream : 0;  // rows' gradients in f32
  const double muon = load.has_muon ? muon_bytes(sizes, load) : 0;
  const double by_adamw = load.has_muon ? values - num_blocks * block_values(sizes, width) : values;
  const double adamw = load.has_fused_kernels ? 0 : 8 * by_adamw * load.optimizer_share;
  const double computing =
      std::max({forward, backward - head.kept, head.working, embedding}) + border;
  memory.buffers = std::max({computing, std::max(adamw, muon) - memory.activations, 0.0});
  return memory;
}

}  // namespace pelago::plan
