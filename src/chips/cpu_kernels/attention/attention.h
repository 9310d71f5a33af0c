// What the parts of the CPU's attention share: the job as plain pointers, and the product of bf16
// pairs that only some processors have.
//
// All of it works on blocks of kBlockQueries queries of one head, with scores laid out key by
// query: a vector holds one key's scores for neighbouring queries, so that maximum, sum and
// rescaling go down the lanes and never across them. Operands of products are made of 32-bit words
// along the summed dimension: a pair of bf16 numbers, or one f32. The algorithm is the same for
// both; one word is the unit of all packing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "chips/cpu_kernels/dtype.h"

namespace pelago::chips::cpu {

struct AttentionShape {
  size_t batch;       // B
  size_t tokens;      // T_new, the last of
  size_t all_tokens;  // T_all
  size_t heads;       // H
  size_t key_heads;   // K
  size_t head_dim;    // E
};

/// [B,T,heads,E] with strides in elements; the elements of a head lie side by side.
struct Heads {
  const void* data;
  size_t batch_stride, token_stride, head_stride;
};

struct AttentionForward {
  Dtype dtype;
  AttentionShape shape;
  Heads q, k, v;
  void* out;           // [B,T_new,H,E] contiguous
  float* log_sum_exp;  // [B,H,T_new]
};

struct AttentionBackward {
  Dtype dtype;
  AttentionShape shape;
  Heads q, k, v, out, grad_out;
  const float* log_sum_exp;        // [B,H,T_new]
  void *grad_q, *grad_k, *grad_v;  // contiguous
};

inline constexpr size_t kPanel = 16;         // columns that lie side by side in a packed operand
inline constexpr size_t kBlockQueries = 32;  // two panels: one tile of the product
inline constexpr size_t kBlockKeys = 128;    // a block of scores, 16 KB, stays in the first cache
inline constexpr size_t kTileRows = 8;

/// The left operand of a product: word (row, k) lies at
/// (row / 16) * panel_stride + (row % 16) * row_stride + k * word_stride.
struct LeftOperand {
  const uint32_t* words;
  size_t row_stride, word_stride, panel_stride;
};

/// The right operand: panel p starts at p * panel_stride and holds [num_words][16].
struct RightOperand {
  const uint32_t* words;
  size_t panel_stride;
};

/// c[row][column] (+)= sum over words of left(row, word) * right(word, column).
struct ProductShape {
  size_t num_rows;    // a multiple of kTileRows
  size_t num_panels;  // a multiple of 2
  size_t num_words;
  size_t c_stride;
  bool adds;
};

/// Heads [begin, end) of the B * K pairs of batch and key head, each with its group of query heads.
void attention_forward(const AttentionForward& job, size_t begin, size_t end);
void attention_backward(const AttentionBackward& job, size_t begin, size_t end);
/// For few queries over many keys: one pass over keys and values, no packing.
void attention_decode(const AttentionForward& job, size_t begin, size_t end);

/// True on processors with AVX-512 BF16, whose products of pairs run at twice the speed of f32.
bool has_bf16_product();
/// Only if has_bf16_product(). Sums are f32.
void bf16_product(const LeftOperand& left,
                  const RightOperand& right,
                  const ProductShape& shape,
                  float* c);

}  // namespace pelago::chips::cpu
