// Products of some rows of activations with weights that were packed for them. The weights of 16
// outputs, a panel, lie side by side: [words][16], a word being the 32 bits that one lane takes at
// a time: one f32, a pair of bf16, four levels of 8 bits, or four of 4 bits in 16. A pass over a
// panel is one stream through memory, no sum ever goes across lanes, and the same kernels serve one
// row (bound by memory) and hundreds (bound by the multipliers). Keys and values of attention lie
// in panels too.
//
// Levels are stored as unsigned numbers, level + 128 or level + 8, since VPDPBUSD multiplies
// unsigned by signed bytes. What the offset adds to a group's sum depends on the activations alone:
// offset * sum(x), taken off before the group is scaled.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pelago::chips::packed {

inline constexpr size_t kPanel = 16;  // outputs side by side: the lanes of 512 bits

enum class Format : uint8_t { kF32, kBf16, kInt8, kInt4 };

constexpr bool is_quantised(Format format) { return format >= Format::kInt8; }
/// Activations' values in a word of 32 bits.
constexpr size_t word_values(Format format) {
  return format == Format::kF32 ? 1 : format == Format::kBf16 ? 2 : 4;
}
/// Bytes of weights a word of a panel takes.
constexpr size_t panel_word_bytes(Format format) {
  return format == Format::kInt4 ? 2 * kPanel : 4 * kPanel;
}
/// Rows at a time at most: with two panels their accumulators fill the 32 registers of AVX-512,
/// levels need two for each sum.
constexpr size_t tile_rows(Format format) { return is_quantised(format) ? 6 : 12; }
/// What is added to a level to store it.
constexpr int32_t level_offset(Format format) { return format == Format::kInt4 ? 8 : 128; }

/// c[row][16 * panel + lane] (+)= sum over words of x and weights. Words of activations are f32,
/// bf16 pairs or four signed levels.
struct PanelJob {
  const uint32_t* x = nullptr;         // [num_words][num_rows]
  const float* x_scales = nullptr;     // [num_words / group_words][num_rows]
  const int32_t* x_sums = nullptr;     // the same: -level_offset * sum of the group's levels
  const std::byte* weights = nullptr;  // panel p at p * panel_bytes: [num_words][16]
  size_t panel_bytes = 0;
  const uint16_t* scales = nullptr;  // f16, panel p at p * panel_scales: [groups][16]
  size_t panel_scales = 0;
  size_t num_words = 0;
  size_t group_words = 0;  // quantised formats: words that share a scale, even
  float* c = nullptr;      // rows c_stride apart
  size_t c_stride = 0;
  bool adds = false;
  /// Weights that will be wanted next, as many words of a panel: fetched meanwhile. Null: none.
  const std::byte* ahead = nullptr;
};

/// num_rows: 1..tile_rows(format); num_panels: any.
using MultiplyPanels = void (*)(const PanelJob& job, size_t num_rows, size_t num_panels);

/// The fastest that this processor has.
MultiplyPanels multiply_panels(Format format);
/// For any processor, by Highway.
MultiplyPanels portable_multiply_panels(Format format);
/// AVX-512 with BF16 and VNNI; null on processors without them.
MultiplyPanels avx512_multiply_panels(Format format);
/// Products by AMX, of bf16 alone (of levels: tiled/tile_levels.h); null where the processor or the
/// system has none. Its rows lie otherwise: x is [num_words / kAmxWords][num_rows][kAmxWords],
/// num_rows 1..kAmxRows, num_words a multiple of kAmxWords. A sum that adds continues the one
/// before, in whatever pieces it comes.
MultiplyPanels amx_multiply_panels(Format format);
inline constexpr size_t kAmxWords = 16, kAmxRows = 32;

}  // namespace pelago::chips::packed
