// A group's products are summed by tiles as integers, which is exact, and then scaled and added up
// in f32 as panels_avx512.cpp does it, so that a row's sums have the same bits by either. Tiles
// have no arithmetic but products, so their sums go through the first cache: some groups of four
// tiles, so that the f32 sums stay in registers meanwhile.
#include "chips/packed/tiled/tile_levels.h"

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>

#include <algorithm>

#include "chips/packed/tiled/tile_registers.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,f16c"))), apply_to = function)
#define PELAGO_UNROLL _Pragma("unroll")
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,f16c")
#define PELAGO_UNROLL _Pragma("GCC unroll 16")
#endif

namespace pelago::chips::packed::amx {
namespace {

// Sums are tiles 0 to 3: of panels 0 to 3, or with lower rows of panels 0, 1, 0 and 1.
constexpr int kSumTiles = 4, kUpperRows = 4, kLowerRows = 5, kFirstWeights = 6;
constexpr size_t kTileValues = kTileRows * kPanel;
// 16 KB of sums beside what is being read: of twice as many groups the first cache would lose some.
constexpr size_t kGroupsAtOnce = 4;
// Bytes of each panel that are on their way while few rows are multiplied.
constexpr size_t kAheadBytes = 8192;

struct alignas(64) Buffer {
  int32_t sums[kGroupsAtOnce][kSumTiles][kTileValues];
  std::byte weights[kSumTiles][kTileRows * kTileBytes];
};

/// Some of a product's groups.
struct Groups {
  size_t first, count;
};

inline void widen(const std::byte* from, size_t num_words, std::byte* to) {
  const __m512i low = _mm512_set1_epi8(15);
  for (size_t word = 0; word < num_words; word += 2, from += 64, to += 128) {
    const __m512i bytes = _mm512_loadu_si512(from);
    _mm512_storeu_si512(to, _mm512_and_si512(bytes, low));
    _mm512_storeu_si512(to + 64, _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low));
  }
}

/// c += sums * weights' scales * activations' scales, of rows [row, row + kRows) and kPanels panels
/// from the first on. sums: row's of the first group and panel.
template <int kRows, int kPanels>
inline void add_scaled(const PanelJob& job,
                       size_t num_rows,
                       const Groups& groups,
                       size_t panel,
                       size_t row,
                       const int32_t* sums) {
  __m512 totals[kRows][kPanels];
  float* c = job.c + row * job.c_stride + panel * kPanel;
  const bool continues = job.adds || groups.first > 0;
  PELAGO_UNROLL
  for (int i = 0; i < kRows; ++i) {
    PELAGO_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      const float* from = c + static_cast<size_t>(i) * job.c_stride + p * 16;
      totals[i][p] = continues ? _mm512_loadu_ps(from) : _mm512_setzero_ps();
    }
  }
  const size_t side = groups.first * num_rows + row;
  const float* x_scales = job.x_scales + side;
  const int32_t* x_sums = job.x_sums + side;
  const uint16_t* scales = job.scales + panel * job.panel_scales + groups.first * kPanel;
  for (size_t group = 0; group < groups.count; ++group) {
    __m512 scale[kPanels];
    PELAGO_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      const auto* halves =
          reinterpret_cast<const __m256i*>(scales + static_cast<size_t>(p) * job.panel_scales);
      scale[p] = _mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256(halves));
    }
    PELAGO_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const __m512 x_scale = _mm512_set1_ps(x_scales[i]);
      const __m512i x_sum = _mm512_set1_epi32(x_sums[i]);
      PELAGO_UNROLL
      for (int p = 0; p < kPanels; ++p) {
        const auto at = static_cast<size_t>(p) * kTileValues + static_cast<size_t>(i) * kPanel;
        const __m512i level = _mm512_add_epi32(_mm512_load_si512(sums + at), x_sum);
        totals[i][p] = _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(0xFFFF, level),
                                       _mm512_mul_ps(scale[p], x_scale),
                                       totals[i][p]);
      }
    }
    sums += kSumTiles * kTileValues;
    scales += kPanel;
    x_scales += num_rows;
    x_sums += num_rows;
  }
  PELAGO_UNROLL
  for (int i = 0; i < kRows; ++i) {
    PELAGO_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      _mm512_storeu_ps(c + static_cast<size_t>(i) * job.c_stride + p * 16, totals[i][p]);
    }
  }
}

/// The same for all rows of a tile. rows: how many; first_row: the tile's among the job's.
template <int kPanels>
inline void add_tile(const PanelJob& job,
                     size_t num_rows,
                     const Groups& groups,
                     size_t panel,
                     size_t first_row,
                     size_t rows,
                     const int32_t* sums) {
  size_t row = 0;
  for (; row + 8 <= rows; row += 8) {
    add_scaled<8, kPanels>(job, num_rows, groups, panel, first_row + row, sums + row * kPanel);
  }
  for (; row + 4 <= rows; row += 4) {
    add_scaled<4, kPanels>(job, num_rows, groups, panel, first_row + row, sums + row * kPanel);
  }
  for (; row < rows; ++row) {
    add_scaled<1, kPanels>(job, num_rows, groups, panel, first_row + row, sums + row * kPanel);
  }
}

inline void fetch(const std::byte* from, size_t num_bytes) {
  for (size_t line = 0; line < num_bytes; line += 64) __builtin_prefetch(from + line, 0, 2);
}

/// Up to kAmxRows rows by kPanels panels: 4 of up to 16 rows, else 2.
template <bool kNibbles, bool kHasLower, int kPanels>
class Product {
 public:
  Product(const PanelJob& job, size_t num_rows, size_t step)
      : job_(job), num_rows_(num_rows), step_(step) {}

  void run() {
    alignas(64) Buffer buffer;
    const size_t num_groups = job_.num_words / job_.group_words;
    for (size_t first = 0; first < num_groups; first += kGroupsAtOnce) {
      const Groups groups = {first, std::min(kGroupsAtOnce, num_groups - first)};
      for (size_t i = 0; i < groups.count; ++i) sum_group(first + i, buffer, buffer.sums[i]);
      for (int panel = 0; panel < kPanels; panel += kPanelsAtOnce) {
        const auto at = static_cast<size_t>(panel);
        add(groups, at, 0, std::min(num_rows_, kTileRows), buffer.sums[0][at]);
        if (kHasLower) add(groups, at, kTileRows, num_rows_ - kTileRows, buffer.sums[0][2 + at]);
      }
    }
  }

 private:
  static constexpr size_t kWordBytes = panel_word_bytes(kNibbles ? Format::kInt4 : Format::kInt8);
  static constexpr int kPanelsAtOnce = kPanels == 1 ? 1 : 2;

  void add(const Groups& groups, size_t panel, size_t row, size_t rows, const int32_t* sums) const {
    add_tile<kPanelsAtOnce>(job_, num_rows_, groups, panel, row, rows, sums);
  }

  /// Integer sums of one group, of all rows and panels.
  void sum_group(size_t group, Buffer& buffer, int32_t (&sums)[kSumTiles][kTileValues]) const {
    for_each_constant<kPanels>([&](auto panel) {
      clear_tile<panel()>();
      if (kHasLower) clear_tile<2 + panel() % 2>();
    });
    const size_t end = (group + 1) * job_.group_words;
    for (size_t word = group * job_.group_words; word < end; word += step_) {
      const uint32_t* x = job_.x + word / kAmxWords * num_rows_ * kAmxWords + word % kAmxWords;
      load_tile<kUpperRows>(x, kTileBytes);
      if (kHasLower) load_tile<kLowerRows>(x + kTileRows * kAmxWords, kTileBytes);
      fetch_ahead(x, word);
      for_each_constant<kPanels>([&](auto panel) {
        constexpr int kIndex = panel(), kWeights = kFirstWeights + kIndex % 2;
        const std::byte* from =
            job_.weights + static_cast<size_t>(kIndex) * job_.panel_bytes + word * kWordBytes;
        if (kNibbles) {
          widen(from, step_, buffer.weights[kIndex]);
          from = buffer.weights[kIndex];
        }
        load_tile<kWeights>(from, kTileBytes);
        add_byte_product<kIndex, kUpperRows, kWeights>();
        if constexpr (kHasLower) add_byte_product<2 + kIndex, kLowerRows, kWeights>();
      });
    }
    for_each_constant<kPanels>([&](auto panel) {
      store_tile<panel()>(sums[panel()], kTileBytes);
      if constexpr (kHasLower) store_tile<2 + panel()>(sums[2 + panel()], kTileBytes);
    });
  }

  void fetch_ahead(const uint32_t* x, size_t word) const {
    if constexpr (kHasLower) {
      if (job_.ahead != nullptr) fetch(job_.ahead + word * kWordBytes, step_ * kWordBytes);
      const uint32_t* next_x = x + num_rows_ * kAmxWords;
      for (size_t row = 0; row < num_rows_; ++row) {
        __builtin_prefetch(next_x + row * kAmxWords, 0, 3);
      }
      return;
    }
    // Memory sets the pace: each panel's stream, and where it ends those of the panels after these.
    const size_t at = word * kWordBytes + kAheadBytes;
    const size_t jump = at < job_.panel_bytes ? 0 : (kPanels - 1) * job_.panel_bytes;
    for (size_t panel = 0; panel < kPanels; ++panel) {
      fetch(job_.weights + panel * job_.panel_bytes + at + jump, step_ * kWordBytes);
    }
  }

  const PanelJob& job_;
  const size_t num_rows_, step_;
};

template <bool kNibbles>
void multiply(const PanelJob& job, size_t num_rows, size_t num_panels) {
  const size_t upper = std::min(num_rows, kTileRows), lower = num_rows - upper;
  // Words of a tile: groups of 32, 96 .. are half tiles.
  const size_t step = job.group_words % kAmxWords == 0 ? kAmxWords : kAmxWords / 2;
  TileShapes shapes;
  for (const size_t sum : {0, 1}) shapes.set(sum, upper);
  for (const size_t sum : {2, 3}) shapes.set(sum, lower > 0 ? lower : upper);
  shapes.set(kUpperRows, upper, step * 4);
  if (lower > 0) shapes.set(kLowerRows, lower, step * 4);
  for (const size_t half : {0, 1}) shapes.set(kFirstWeights + half, step);
  shape_tiles(shapes);
  PanelJob part = job;
  const auto run = [&](size_t panels, auto&& product) {
    for (; num_panels >= panels; num_panels -= panels) {
      product();
      part.weights += panels * part.panel_bytes;
      part.scales += panels * part.panel_scales;
      part.c += panels * kPanel;
    }
  };
  if (lower == 0) {
    run(4, [&] { Product<kNibbles, false, 4>(part, num_rows, step).run(); });
    run(1, [&] { Product<kNibbles, false, 1>(part, num_rows, step).run(); });
  } else {
    run(2, [&] { Product<kNibbles, true, 2>(part, num_rows, step).run(); });
    run(1, [&] { Product<kNibbles, true, 1>(part, num_rows, step).run(); });
  }
  release_tiles();
}

}  // namespace
}  // namespace pelago::chips::packed::amx

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace pelago::chips::packed {

MultiplyPanels amx_multiply_levels(Format format) {
  static const bool kHas =
      avx512_multiply_panels(Format::kInt8) != nullptr && may_use_tiles(TileProducts::kBytes);
  if (!kHas || !is_quantised(format)) return nullptr;
  return format == Format::kInt8 ? amx::multiply<false> : amx::multiply<true>;
}
void widen_nibbles(const std::byte* from, size_t num_words, std::byte* to) {
  amx::widen(from, num_words, to);
}

}  // namespace pelago::chips::packed

#else

namespace pelago::chips::packed {
MultiplyPanels amx_multiply_levels(Format) { return nullptr; }
void widen_nibbles(const std::byte*, size_t, std::byte*) {}
}  // namespace pelago::chips::packed

#endif
