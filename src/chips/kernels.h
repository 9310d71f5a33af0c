// The operators a transformer spends its time in. Each is registered with libtorch's dispatcher as
// pelago::NAME: a Highway kernel for the CPU, a composite of ATen calls for every other chip, so
// that a chip without kernels of its own still works. These functions add autograd. The plain twins
// of the CPU kernels are in chips/reference/.
//
// Most of them move memory; those that multiply (schemas in kernels/registry.cpp):
//   pelago::attention           4 E FLOPs for each query and key it sees, B H T_new T_all / 2 of
//                               these pairs where T_new = T_all
//   pelago::attention_backward  2.5 times as many: five products where forward has two
//   pelago::cross_entropy       2 N D V forward, 6 N D V with its gradients
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "chips/tensor.h"

namespace pelago::chips {

/// x * weight / sqrt(mean(x^2) + eps) over the last dimension (RMSNorm, arXiv:1910.07467).
/// x: [..., D] f32 or bf16 or fp16; weight: [D], same dtype. Returns the shape and dtype of x;
/// arithmetic is f32.
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps);

/// sum = x + residual, y = rms_norm(sum); one pass. Returns {y, sum}. Shapes and dtypes as
/// rms_norm.
std::pair<Tensor, Tensor> add_rms_norm(const Tensor& x,
                                       const Tensor& residual,
                                       const Tensor& weight,
                                       double eps);

/// Rotates heads by position (RoPE, arXiv:2104.09864), Hugging Face's half-split layout (x1 = first
/// E/2). x: [B,T,H,E]; cos, sin: [T,E/2] f32 for the positions of x. Returns [B,T,H,E] in the dtype
/// of x.
Tensor apply_rope(const Tensor& x, const Tensor& cos, const Tensor& sin);

/// Causal softmax(q k^T / sqrt(E)) v with grouped query heads; T_new queries are the LAST positions
/// of the T_all keys. q: [B,T_new,H,E]; k, v: [B,T_all,K,E], H a multiple of K, T_all >= T_new.
/// Returns [B,T_new,H,E]. Softmax is f32.
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v);

/// silu(gate) * up. gate_up: [..., 2F], gate first. Returns [..., F].
Tensor swiglu(const Tensor& gate_up);

/// Sum over tokens of the cross entropy of softmax(hidden head^T), never holding all logits at
/// once: tokens go in chunks, each chunk's gradient is made on the way (arXiv:2411.09009 in
/// spirit). hidden: [N,D]; head: [V,D] same dtype; targets: [N] int64, -100 counts for nothing.
/// Returns a f32 scalar. Gradients flow to hidden and head.
Tensor cross_entropy_sum(const Tensor& hidden, const Tensor& head, const Tensor& targets);

struct AdamWOptions {
  double lr = 0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;  // decoupled (arXiv:1711.05101)
  int64_t step = 1;         // 1 for the first step: bias correction
  double grad_scale = 1;    // the gradient is multiplied by this first (1/tokens, clipping)
};
/// One AdamW step in place, in one pass. master, grad, m, v: [N] f32; weights: [N] in the training
/// dtype, receives the rounded master (may be the same tensor as master when that is f32).
/// Everything contiguous.
void adamw_step(Tensor& master,
                const Tensor& grad,
                Tensor& m,
                Tensor& v,
                Tensor& weights,
                const AdamWOptions& options);

struct MuonOptions {
  double lr = 0;
  double momentum = 0.95;   // Nesterov's
  double weight_decay = 0;  // decoupled
  double grad_scale = 1;    // the gradient is multiplied by this first (1/tokens, clipping)
  double grad_norm_max = 0;  // of every scaled gradient so far; 0: not known. No element of m grows
                             // beyond what such gradients add up to: one that has was damaged in
                             // memory, and begins anew as 0
};
/// One step of Muon (Jordan et al. 2024) in place: the momentum's nearest orthogonal matrix, by
/// five Newton-Schulz iterations in the dtype of weights, times 0.2 sqrt(max(rows, columns)), whose
/// root mean square is that of an AdamW step, so that both take the same rates (arXiv:2502.16982).
/// A product that went wrong shows in the length of the result: such a step leaves master as it is
/// but for the decay.
/// master, grad, m: [R,C] f32; weights: [R,C] in the training dtype, receives the rounded master
/// (may be the same tensor). Everything contiguous.
void muon_step(
    Tensor& master, const Tensor& grad, Tensor& m, Tensor& weights, const MuonOptions& options);

/// sum += grad for [N] f32 sum and [N] grad of any float dtype, contiguous.
void accumulate(Tensor& sum, const Tensor& grad);

/// Sum of squares of a contiguous f32 tensor, accumulated in f64 in a fixed order; NaN or inf if an
/// element is.
double sum_of_squares(const Tensor& values);

/// A vector quantised by blocks: each block of kQuantBlock values has one f32 scale (its largest
/// magnitude / the largest level). 4 bits: levels -7..7, two a byte, low nibble first. 8 bits:
/// -127..127. 32: plain f32, no scales. Rounding is to nearest even. Host memory, + - x / only:
/// bit-identical on every machine.
inline constexpr int64_t kQuantBlock = 64;
struct QuantisedVector {
  int bits = 4;
  int64_t num_values = 0;
  std::vector<float> scales;     // [ceil(N / kQuantBlock)], empty for 32 bits
  std::vector<uint8_t> payload;  // [ceil(N*bits/8)]
};
/// bits: 4, 8 or 32. A block with a value that is not finite throws Failure.
QuantisedVector quantise(std::span<const float> values, int bits);
/// out: as many values as were quantised.
void dequantise(const QuantisedVector& quantised, std::span<float> out);

/// The same for a thin line: kLineBlock values share a scale of one byte, 4.0625 or 8.0625 bits a
/// value in all. A scale has 3 bits of mantissa and 5 of exponent, code c stands for the f32 whose
/// upper 12 bits are kLineScaleBase + c: 2^-29 to 7.5, and c = 0 for zero. It is rounded up, so
/// that no value is clipped unless it is past 52 (4 bits) or 952 (8 bits); what is clipped or too
/// small counts as rounding error. The range is the same for all, so a block's bytes do not depend
/// on its neighbours, and no scale or restored value is ever denormal, infinite or not a number.
inline constexpr int64_t kLineBlock = 128;
inline constexpr uint32_t kLineScaleBase = 783;
inline float line_scale(uint8_t code) {
  return code == 0 ? 0.0F : std::bit_cast<float>((kLineScaleBase + code) << 20);
}
/// The least code whose scale is not below this one, within the range. scale >= 0.
inline uint8_t line_code_above(float scale) {
  const uint32_t upper = (std::bit_cast<uint32_t>(scale) + 0xFFFFF) >> 20;
  if (upper <= kLineScaleBase) return scale > 0 ? 1 : 0;
  return static_cast<uint8_t>(std::min(upper - kLineScaleBase, 255U));
}
/// Scales, one a block, then levels as in QuantisedVector.
constexpr size_t line_bytes(size_t num_values, int bits) {
  return (num_values + kLineBlock - 1) / kLineBlock +
         (num_values * static_cast<size_t>(bits) + 7) / 8;
}
/// bits: 4 or 8. out: line_bytes() of them. Throws Failure if a value is not finite.
void quantise_for_line(std::span<const float> values, int bits, std::span<uint8_t> out);
/// Any bytes of the right number have a meaning.
void dequantise_from_line(std::span<const uint8_t> bytes, int bits, std::span<float> out);

}  // namespace pelago::chips
