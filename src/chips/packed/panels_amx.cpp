// The bf16 products for processors with AMX, whose tiles multiply 16 rows by 16 outputs by 32
// inputs at a time: eight times as much as VDPBF16PS does. A panel's 16 words are such a tile as
// they lie; rows of activations come 16 words at a time, row by row. A sum goes on where the one
// before it ended, so that neither the other rows nor how the words are cut change its bits.
#include "chips/packed/panels.h"

#if defined(__x86_64__) && defined(__linux__)
#include <algorithm>

#include "chips/packed/tiled/tile_registers.h"

namespace pelago::chips::packed {
namespace {

constexpr size_t kWeightTileBytes = kAmxWords * kTileBytes;
// Sums are tiles 0 to 3.
constexpr int kUpperRows = 4, kLowerRows = 5, kFirstWeights = 6;

template <int kTile>
inline void begin_sum(const PanelJob& job, const float* c) {
  if (job.adds) {
    load_tile<kTile>(c, job.c_stride * sizeof(float));
  } else {
    clear_tile<kTile>();
  }
}
template <int kTile>
inline void end_sum(const PanelJob& job, float* c) {
  store_tile<kTile>(c, job.c_stride * sizeof(float));
}

inline void fetch(const std::byte* from) {
  for (size_t line = 0; line < kWeightTileBytes; line += 64) __builtin_prefetch(from + line, 0, 2);
}

/// Up to 16 rows: a weight that is read is used once, so memory sets the pace.
template <int kPanels>
void multiply_few_rows(const PanelJob& job, size_t num_rows) {
  constexpr size_t kAhead = 4 * kWeightTileBytes;
  const auto c_of = [&](int panel) { return job.c + static_cast<size_t>(panel) * kPanel; };
  for_each_constant<kPanels>([&](auto panel) { begin_sum<panel()>(job, c_of(panel)); });
  const uint32_t* x = job.x;
  const std::byte* weights = job.weights;
  for (size_t word = 0; word < job.num_words; word += kAmxWords) {
    load_tile<kUpperRows>(x, kTileBytes);
    for_each_constant<kPanels>([&](auto panel) {
      constexpr int kWeights = kFirstWeights + panel() % 2;
      const std::byte* from = weights + static_cast<size_t>(panel) * job.panel_bytes;
      fetch(from + kAhead);
      load_tile<kWeights>(from, kTileBytes);
      add_tile_product<panel(), kUpperRows, kWeights>();
    });
    x += num_rows * kAmxWords;
    weights += kWeightTileBytes;
  }
  for_each_constant<kPanels>([&](auto panel) { end_sum<panel()>(job, c_of(panel)); });
}

/// 17 to 32 rows by one or two panels: a tile of weights that is read is used twice.
template <int kPanels>
void multiply_many_rows(const PanelJob& job, size_t num_rows) {
  const auto c_of = [&](int panel) { return job.c + static_cast<size_t>(panel) * kPanel; };
  const size_t below = kTileRows * job.c_stride;
  for_each_constant<kPanels>([&](auto panel) {
    begin_sum<panel()>(job, c_of(panel));
    begin_sum<2 + panel()>(job, c_of(panel) + below);
  });
  const uint32_t* x = job.x;
  const std::byte* weights = job.weights;
  const std::byte* ahead = job.ahead;
  for (size_t word = 0; word < job.num_words; word += kAmxWords) {
    if (ahead != nullptr) {
      fetch(ahead);
      ahead += kWeightTileBytes;
    }
    const uint32_t* const next_x = x + num_rows * kAmxWords;
    for (size_t row = 0; row < num_rows; ++row) __builtin_prefetch(next_x + row * kAmxWords, 0, 3);
    load_tile<kUpperRows>(x, kTileBytes);
    load_tile<kLowerRows>(x + kTileRows * kAmxWords, kTileBytes);
    for_each_constant<kPanels>([&](auto panel) {
      constexpr int kWeights = kFirstWeights + panel();
      load_tile<kWeights>(weights + static_cast<size_t>(panel) * job.panel_bytes, kTileBytes);
      add_tile_product<panel(), kUpperRows, kWeights>();
      add_tile_product<2 + panel(), kLowerRows, kWeights>();
    });
    x += num_rows * kAmxWords;
    weights += kWeightTileBytes;
  }
  for_each_constant<kPanels>([&](auto panel) {
    end_sum<panel()>(job, c_of(panel));
    end_sum<2 + panel()>(job, c_of(panel) + below);
  });
}

void multiply(const PanelJob& job, size_t num_rows, size_t num_panels) {
  const size_t upper = std::min(num_rows, kTileRows), lower = num_rows - upper;
  TileShapes shapes;
  for (const size_t sum : {0, 1}) shapes.set(sum, upper);
  for (const size_t sum : {2, 3}) shapes.set(sum, lower > 0 ? lower : upper);
  shapes.set(kUpperRows, upper);
  if (lower > 0) shapes.set(kLowerRows, lower);
  for (const size_t half : {0, 1}) shapes.set(kFirstWeights + half, kAmxWords);
  shape_tiles(shapes);
  PanelJob part = job;
  const auto run = [&](size_t panels, const auto& product) {
    for (; num_panels >= panels; num_panels -= panels) {
      product(part, num_rows);
      part.weights += panels * part.panel_bytes;
      part.c += panels * kPanel;
    }
  };
  if (lower == 0) {
    run(4, multiply_few_rows<4>);
    run(1, multiply_few_rows<1>);
  } else {
    run(2, multiply_many_rows<2>);
    run(1, multiply_many_rows<1>);
  }
  release_tiles();
}

}  // namespace

MultiplyPanels amx_multiply_panels(Format format) {
  static const bool kHas = may_use_tiles(TileProducts::kBf16);
  return kHas && format == Format::kBf16 ? multiply : nullptr;
}

}  // namespace pelago::chips::packed

#else

namespace pelago::chips::packed {
MultiplyPanels amx_multiply_panels(Format) { return nullptr; }
}  // namespace pelago::chips::packed

#endif
