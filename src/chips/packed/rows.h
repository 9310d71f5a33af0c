// Rows of activations: the steps between products, row by row in f32, and the tiles that products
// take. A tile is [words][rows]: the words that are multiplied with one line of a panel lie side by
// side. Rows of quantised products are rounded to 8 bits, a scale a row and group.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "chips/packed/core_team.h"
#include "chips/packed/packed_matrix.h"
#include "chips/packed/panels.h"

namespace pelago::chips::packed {

/// out = x * weight / sqrt(mean(x^2) + eps); out may be x. All [num_values] f32.
void rms_norm(const float* x, const float* weight, size_t num_values, double eps, float* out);
/// out = gate / (1 + exp(-gate)) * up.
void swiglu(const float* gate, const float* up, size_t num_values, float* out);
/// Turns a head in place, half-split. cos, sin: [head_dim / 2].
void rotate(float* head, const float* cos, const float* sin, size_t head_dim);
/// to += from.
void add(const float* from, size_t num_values, float* to);
/// to = exp((from - top) * scale) for from <= top, to 1e-7 relative; 0 where that is no normal
/// number.
void exp_below(const float* from, float top, float scale, size_t num_values, float* to);
/// f32 to bf16, rounded to nearest even, and back.
void round_to_bf16(const float* from, size_t num_values, uint16_t* to);
void widen_bf16(const uint16_t* from, size_t num_values, float* to);

/// Rows cut into tiles of nearly equal height.
struct Tiling {
  size_t num_rows = 0, num_tiles = 0;
  Tiling() = default;
  Tiling(size_t rows, size_t rows_max)
      : num_rows(rows), num_tiles((rows + rows_max - 1) / rows_max) {}
  size_t first_row(size_t tile) const { return num_rows * tile / num_tiles; }
  size_t rows_of(size_t tile) const { return first_row(tile + 1) - first_row(tile); }
};

/// Room for rows of any format up to a size, and their tiles of the moment.
class PackedRows {
 public:
  PackedRows(size_t rows_max, size_t inputs_max);
  /// What is put from now on: rows for products with this matrix.
  void begin(size_t num_rows, const PackedMatrix& weights);
  /// Rounds a row's inputs [In] f32 and puts them into their tile. Different rows from different
  /// threads at once. scratch: [In] bytes of the thread's own, twice.
  void put(size_t row_idx, const float* values, uint16_t* scratch);
  const Tiling& tiling() const { return tiling_; }
  /// The fastest that takes these rows.
  MultiplyPanels product() const { return product_; }
  bool is_for_amx() const { return is_for_amx_; }
  /// Whether their products are those of tiled/block_product.h: bf16 for AMX, several whole tiles.
  bool is_in_blocks() const {
    return is_for_amx_ && !is_quantised(format_) && tiling_.num_tiles > 1 &&
           tiling_.rows_of(0) > kAmxRows / 2;
  }
  /// Words [i, i + 1) * block_words() of all tiles lie together.
  size_t block_words() const { return block_words_; }
  /// Where a tile's rows are from a word on; of AMX a multiple of kAmxWords, or within its line.
  const uint32_t* tile_words(size_t tile, size_t word) const { return words() + place(tile, word); }
  uint32_t* tile_words(size_t tile, size_t word) { return words() + place(tile, word); }
  /// Fills in the activations' part of a job: a tile, from a word on that begins a group.
  void point(PanelJob& job, size_t tile, size_t first_word) const;

 private:
  /// The product by AMX of so many rows; null where there is none, or another is faster.
  MultiplyPanels amx_product(size_t num_rows) const;
  size_t place(size_t tile, size_t word) const;

  Format format_ = Format::kF32;
  size_t num_inputs_ = 0, num_words_ = 0, group_words_ = 0, block_words_ = 0;
  Tiling tiling_;
  MultiplyPanels product_ = nullptr;
  bool is_for_amx_ = false;
  uint32_t* words() { return reinterpret_cast<uint32_t*>(words_.data()); }
  const uint32_t* words() const { return reinterpret_cast<const uint32_t*>(words_.data()); }

  // Tile by tile [words][rows]; for AMX [words / 16][rows][16], of bf16 block by block.
  LargeMemory words_;
  std::vector<float> scales_;  // [groups][rows]
  std::vector<int32_t> sums_;  // the same
};

/// Tells the member that its next product is with these weights: it fetches the first of them while
/// it waits for others in between.
void expect(CoreTeam::Member& member, const PackedMatrix& weights);

/// c [rows][c_stride] = x weights^T, or added to it; panels are shared by the team's members, each
/// of whom calls this. c_stride: at least the panels' outputs.
void multiply(CoreTeam::Member& member,
              const PackedRows& x,
              const PackedMatrix& weights,
              float* c,
              size_t c_stride,
              bool adds);
/// Puts swiglu of panels 2i (gate) and 2i + 1 (up), 16 outputs a pair, into the rows of `to`, which
/// has begun. h: room for [rows][h_stride]; scratch as put() takes it.
void multiply_swiglu(CoreTeam::Member& member,
                     const PackedRows& x,
                     const PackedMatrix& gate_up,
                     PackedRows& to,
                     float* h,
                     size_t h_stride,
                     uint16_t* scratch);

}  // namespace pelago::chips::packed
