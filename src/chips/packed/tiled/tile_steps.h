// What is done to numbers on their way from one product by AMX to the next: rounded to bf16 and put
// in pieces of 32, as tiles of rows take them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pelago::chips::packed {

inline constexpr size_t kPieceValues = 32;  // bf16: a row of a tile

/// from [num_values] f32, times scale, to bf16. num_values: a multiple of kPieceValues. Pieces lie
/// piece_stride values apart.
void round_to_pieces(
    const float* from, float scale, size_t num_values, uint16_t* to, size_t piece_stride);

/// gate / (1 + exp(-gate)) * up in bf16, gate and up [num_rows][16] f32; rows of `to` lie a piece
/// apart.
void swiglu_tile(const float* gate, const float* up, size_t num_rows, uint16_t* to);

/// One row's running softmax.
struct RunningSoftmax {
  float largest, total;
};

/// Scores of base 2 to weights in bf16: 2^(score - largest so far) of the first num_seen keys, 0 up
/// to num_keys, a multiple of kPieceValues. Brings the row up to date; total is of weights before
/// they are rounded. Returns what the row's sums so far must be multiplied with.
float weigh_to_pieces(const float* scores,
                      size_t num_seen,
                      size_t num_keys,
                      RunningSoftmax& row,
                      uint16_t* to,
                      size_t piece_stride);

/// Every vector of 16 f32, stride values apart, times scale; to may be from.
void scale_vectors(
    const float* from, size_t stride, size_t num_vectors, float scale, float* to, size_t to_stride);

}  // namespace pelago::chips::packed
