// All parameters are views of ONE flat vector in the order of parameter_specs(): the optimizer, the
// reduction over ranks and the fragments between sites then work on ranges of a vector, not on
// lists. What autograd sees is coarser than the named views: q, k and v of a layer are one leaf,
// gate and up another, so that each is one matmul forward and two backward. The embedding is no
// leaf at all: its gradient touches few rows, so the rows that a microbatch looked up are the leaf,
// and their gradients are added straight into the flat gradient. A dense [V,D] gradient would cost
// three passes over the largest matrix of a small model.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "chips/tensor.h"
#include "chips/torch.h"
#include "model/config.h"
#include "model/parts/part.h"

namespace pelago::model {

/// The weights of one block, as autograd's leaves. A missing bias or norm is an undefined tensor.
struct BlockWeights {
  Tensor qkv;                  // [(H+2K)*E,D]
  Tensor qkv_bias;             // [(H+2K)*E]
  Tensor output;               // [D,H*E]
  Tensor q_norm, k_norm;       // [E]
  Tensor gate_up;              // [2F,D], gate first
  Tensor down;                 // [D,F]
  Tensor input_norm;           // [D]
  Tensor post_attention_norm;  // [D]
};

/// The flat vector of parameters and what points into it. Moves, never copies.
class Parameters {
 public:
  /// The whole model. flat: [N] on any device and float dtype, contiguous, N =
  /// config.num_parameters(). All tensors here share its memory: writing to it changes them.
  Parameters(const ModelConfig& config, Tensor flat);
  /// A part of it: N is what the part holds, shapes below are those of the part.
  Parameters(const ModelConfig& config, const ModelPart& part, Tensor flat);
  Parameters(Parameters&&) = default;
  Parameters& operator=(Parameters&&) = default;

  const Tensor& flat() const { return flat_; }  // [N]
  const ModelPart& part() const { return part_; }
  /// In the order of flat().
  const std::vector<PartSpec>& specs() const { return specs_; }
  /// In the same order; for reading, without gradients.
  const std::vector<Tensor>& views() const { return views_; }
  /// The view of that name. Throws Failure if there is none.
  const Tensor& at(std::string_view name) const;

  /// Of the part, its first block first.
  const std::vector<BlockWeights>& blocks() const { return blocks_; }
  // The next two are undefined where the part has no head.
  const Tensor& final_norm() const { return final_norm_; }  // [D]
  const Tensor& head() const { return head_; }              // [V,D]; the embedding if tied
  /// Rows of the embedding. tokens: [N] int64. Returns [N,D]; where gradients are on, a leaf whose
  /// gradient move_gradients_into() adds to the embedding's.
  Tensor embed(const Tensor& tokens) const;

  /// Adds every gradient into flat_gradient, f32 [N] on the device, and clears them. After a
  /// backward() that overflowed or was given up, it also forgets the rows looked up.
  void move_gradients_into(Tensor& flat_gradient);
  /// The same for block block_idx of the part alone, for final norm and head alone.
  void move_block_gradients_into(size_t block_idx, Tensor& flat_gradient);
  void move_head_gradients_into(Tensor& flat_gradient);
  /// Adds gradients of rows that were looked up without autograd. tokens: [N] int64; row_gradients:
  /// [N,D] of any float dtype.
  void add_embedding_gradient(const Tensor& tokens,
                              const Tensor& row_gradients,
                              Tensor& flat_gradient) const;

 private:
  struct Leaf {
    Tensor weight;
    int64_t begin;  // in the flat vector
  };
  void move_leaves_into(size_t begin, size_t end, Tensor& flat_gradient);

  struct LookedUp {
    Tensor tokens;  // [N] int64
    Tensor rows;    // [N,D]
  };

  Tensor flat_;
  ModelPart part_;
  std::vector<PartSpec> specs_;
  std::vector<Tensor> views_;
  std::map<std::string, size_t, std::less<>> idx_of_name_;
  std::vector<Leaf> leaves_;
  std::vector<size_t> first_leaves_;  // of each block; one more: of final norm and head
  std::vector<BlockWeights> blocks_;
  Tensor embedding_;  // [V,D], no leaf
  Tensor final_norm_;
  Tensor head_;
  mutable std::vector<LookedUp> looked_up_;  // since the last move_gradients_into()
};

}  // namespace pelago::model
