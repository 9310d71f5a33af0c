// Plain twins of the kernels: simple loops in f64 over f32 numbers, written to be read and checked
// against the formulas, never to be fast. Tests compare the kernels with them. Shapes as in
// chips/kernels.h, flattened row by row.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "chips/kernels.h"

namespace pelago::chips::reference {

using Values = std::vector<double>;

/// x: [num_rows * D], weight: [D]. Returns [num_rows * D].
Values rms_norm(const Values& x, const Values& weight, double eps);
struct NormGradients {
  Values x;       // [num_rows * D]
  Values weight;  // [D]
};
NormGradients rms_norm_backward(const Values& grad_y,
                                const Values& x,
                                const Values& weight,
                                double eps);

struct HeadShape {
  int64_t batch = 1;
  int64_t tokens = 1;  // of the queries
  int64_t all_tokens = 1;
  int64_t heads = 1;
  int64_t key_heads = 1;
  int64_t head_dim = 2;
};
/// x: [B,T,H,E]; cos, sin: [T,E/2]. backward turns the other way.
Values rope(
    const Values& x, const Values& cos, const Values& sin, const HeadShape& shape, bool backward);
/// q: [B,T_new,H,E]; k, v: [B,T_all,K,E]. Returns [B,T_new,H,E].
Values attention(const Values& q, const Values& k, const Values& v, const HeadShape& shape);
struct AttentionGradients {
  Values q, k, v;
};
AttentionGradients attention_backward(const Values& grad_out,
                                      const Values& q,
                                      const Values& k,
                                      const Values& v,
                                      const HeadShape& shape);

/// gate_up: [num_rows * 2F]. Returns [num_rows * F].
Values swiglu(const Values& gate_up, int64_t intermediate);
/// grad_y: [num_rows * F]. Returns [num_rows * 2F].
Values swiglu_backward(const Values& grad_y, const Values& gate_up, int64_t intermediate);

struct CrossEntropy {
  double loss = 0;
  Values grad_hidden;  // [N * D]
  Values grad_head;    // [V * D]
};
/// hidden: [N * D]; head: [V * D]; targets: [N], -100 counts for nothing.
CrossEntropy cross_entropy(const Values& hidden,
                           const Values& head,
                           std::span<const int64_t> targets,
                           int64_t hidden_size);

/// One number's state under AdamW.
struct AdamwState {
  double master = 0, m = 0, v = 0;
};
/// As arXiv:1711.05101 writes it (algorithm 2).
AdamwState adamw(AdamwState state, double grad, const AdamWOptions& options);

/// A matrix's state under Muon, row by row.
struct MuonState {
  Values master, m;
};
/// As Jordan et al. 2024 write it, with the scale of arXiv:2502.16982. grad: [rows * columns].
MuonState muon(MuonState state, const Values& grad, int64_t num_rows, const MuonOptions& options);

double sum_of_squares(const Values& values);

/// 4 or 8 bits, one value after the other.
QuantisedVector quantise(std::span<const float> values, int bits);
void dequantise(const QuantisedVector& quantised, std::span<float> out);
std::vector<uint8_t> quantise_for_line(std::span<const float> values, int bits);

}  // namespace pelago::chips::reference
