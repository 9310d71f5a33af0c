#include "chips/packed/tiled/tile_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "chips/packed/tiled/tile_registers.h"
#include "chips/packed/tiled/tile_steps.h"

namespace pelago::chips::packed {

#if defined(__x86_64__) && defined(__linux__)

namespace {

constexpr float kLog2E = 1.44269504088896341F;
constexpr size_t kBlockKeys = 256;  // of scores, 64 rows of them 68 KB
constexpr size_t kTileFloats = kTileRows * kPanel;
constexpr size_t kTileValues = kTileRows * kPieceValues;  // of bf16
// Sums are tiles 0 to 3: upper rows by two panels, lower rows by them.
constexpr int kUpperRows = 4, kLowerRows = 5, kFirstPanel = 6;

/// What one call computes with, in the thread's scratch: all in tiles, a tile being 1 KB.
class TiledRows {
 public:
  TiledRows(const AttentionJob& job, size_t begin, size_t end, AttentionScratch& scratch)
      : job_(job),
        layout_(*job.layout),
        begin_(begin),
        num_rows_(end - begin),
        num_tiles_((num_rows_ + kTileRows - 1) / kTileRows),
        num_steps_(layout_.head_dim / kPieceValues),
        pages_a_block_(std::max<size_t>(1, kBlockKeys / layout_.page_tokens)),
        pieces_a_block_(pages_a_block_ * layout_.page_tokens / kPieceValues),
        score_stride_(pages_a_block_ * layout_.page_tokens + kPanel) {
    const size_t rows = num_tiles_ * kTileRows;
    const size_t sizes[] = {rows * layout_.head_dim * sizeof(uint16_t),
                            rows * score_stride_ * sizeof(float),
                            rows * pieces_a_block_ * kTileBytes,
                            rows * layout_.head_dim * sizeof(float)};
    size_t num_bytes = kTileBytes;
    for (const size_t size : sizes) num_bytes += size;
    if (scratch.tiles.size() < num_bytes) scratch.tiles.resize(num_bytes);
    const auto address = reinterpret_cast<uintptr_t>(scratch.tiles.data());
    std::byte* at = scratch.tiles.data() + (kTileBytes - address % kTileBytes) % kTileBytes;
    queries_ = reinterpret_cast<uint16_t*>(at);
    scores_ = reinterpret_cast<float*>(at += sizes[0]);
    weights_ = reinterpret_cast<uint16_t*>(at += sizes[1]);
    sums_ = reinterpret_cast<float*>(at += sizes[2]);
    std::fill_n(softmax_, num_rows_, RunningSoftmax{-std::numeric_limits<float>::infinity(), 0});
  }

  void run() {
    put_queries();
    const size_t num_keys = job_.first_position + (begin_ + num_rows_ - 1) / job_.group + 1;
    const size_t num_pages = (num_keys + layout_.page_tokens - 1) / layout_.page_tokens;
    for (size_t page = 0; page < num_pages; page += pages_a_block_) {
      attend_block(page, std::min(pages_a_block_, num_pages - page));
    }
    finish();
  }

 private:
  const std::byte* head_of(size_t page) const {
    return job_.memory + static_cast<size_t>(job_.pages[page]) * layout_.page_bytes() +
           layout_.head_offset(job_.layer_idx, job_.key_head);
  }
  /// Pairs of tiles of rows, then a last one alone.
  template <typename Visit>
  void for_each_rows(const Visit& visit) const {
    size_t tile = 0;
    for (; tile + 2 <= num_tiles_; tile += 2) visit(std::integral_constant<int, 2>(), tile);
    if (tile < num_tiles_) visit(std::integral_constant<int, 1>(), tile);
  }

  void put_queries() const {
    const float scale = kLog2E / std::sqrt(static_cast<float>(layout_.head_dim));
    for (size_t row = 0; row < num_rows_; ++row) {
      const size_t idx = begin_ + row;
      round_to_pieces(
          job_.queries + idx / job_.group * job_.query_stride + idx % job_.group * layout_.head_dim,
          scale,
          layout_.head_dim,
          queries_ + row / kTileRows * num_steps_ * kTileValues + row % kTileRows * kPieceValues,
          kTileValues);
    }
  }

  void attend_block(size_t first_page, size_t num_pages) {
    const size_t first_key = first_page * layout_.page_tokens;
    const size_t num_keys = num_pages * layout_.page_tokens;
    for (size_t page = 0; page < num_pages; ++page) {
      for_each_rows([&](auto count, size_t tile) {
        score_page<count()>(head_of(first_page + page), page * layout_.page_tokens, tile);
      });
    }
    for (size_t row = 0; row < num_rows_; ++row) {
      const size_t position = job_.first_position + (begin_ + row) / job_.group;
      const float shrink =
          weigh_to_pieces(scores_ + row * score_stride_,
                          position < first_key ? 0 : std::min(num_keys, position + 1 - first_key),
                          num_keys,
                          softmax_[row],
                          weights_ + row / kTileRows * pieces_a_block_ * kTileValues +
                              row % kTileRows * kPieceValues,
                          kTileValues);
      if (shrink == 1.0F || first_page == 0) continue;
      float* sums = sums_of(row);
      scale_vectors(sums, kTileFloats, layout_.value_panels(), shrink, sums, kTileFloats);
    }
    for (size_t panel = 0; panel < layout_.value_panels(); panel += 2) {
      for_each_rows(
          [&](auto count, size_t tile) { mix_pages<count()>(first_page, num_pages, panel, tile); });
    }
  }

  float* sums_of(size_t row) const {
    return sums_ + row / kTileRows * layout_.value_panels() * kTileFloats +
           row % kTileRows * kPanel;
  }

  /// The tiles of up to two heights of rows, by two panels of a page.
  template <int kHeights>
  static void add_products(const uint16_t* rows,
                           size_t below,
                           const std::byte* panel,
                           size_t panel_bytes) {
    load_tile<kUpperRows>(rows, kTileBytes);
    if constexpr (kHeights == 2) load_tile<kLowerRows>(rows + below, kTileBytes);
    for_each_constant<2>([&](auto which) {
      constexpr int kOf = kFirstPanel + which();
      load_tile<kOf>(panel + static_cast<size_t>(which()) * panel_bytes, kTileBytes);
      add_tile_product<which(), kUpperRows, kOf>();
      if constexpr (kHeights == 2) add_tile_product<2 + which(), kLowerRows, kOf>();
    });
  }

  template <int kHeights>
  void score_page(const std::byte* keys, size_t column, size_t tile) const {
    const size_t panel_bytes = layout_.words_per_key() * kPanel * 4;
    const size_t below = num_steps_ * kTileValues;
    for (size_t panel = 0; panel < layout_.page_tokens / kPanel; panel += 2) {
      for_each_constant<2 * kHeights>([&](auto sum) { clear_tile<sum()>(); });
      for (size_t step = 0; step < num_steps_; ++step) {
        add_products<kHeights>(queries_ + (tile * num_steps_ + step) * kTileValues,
                               below,
                               keys + panel * panel_bytes + step * kTileRows * kTileBytes,
                               panel_bytes);
      }
      for_each_constant<2 * kHeights>([&](auto sum) {
        const size_t row = (tile + static_cast<size_t>(sum()) / 2) * kTileRows;
        store_tile<sum()>(scores_ + row * score_stride_ + column +
                              (panel + static_cast<size_t>(sum()) % 2) * kPanel,
                          score_stride_ * sizeof(float));
      });
    }
  }

  template <int kHeights>
  void mix_pages(size_t first_page, size_t num_pages, size_t panel, size_t tile) const {
    const size_t panel_bytes = layout_.words_per_page() * kPanel * 4;
    const auto place = [&](size_t sum) {
      return sums_ + ((tile + sum / 2) * layout_.value_panels() + panel + sum % 2) * kTileFloats;
    };
    for_each_constant<2 * kHeights>([&](auto sum) {
      if (first_page == 0) {
        clear_tile<sum()>();
      } else {
        load_tile<sum()>(place(static_cast<size_t>(sum())), kTileBytes);
      }
    });
    const size_t pieces_a_page = layout_.page_tokens / kPieceValues;
    for (size_t page = 0; page < num_pages; ++page) {
      const std::byte* values =
          head_of(first_page + page) + layout_.keys_bytes() + panel * panel_bytes;
      for (size_t piece = 0; piece < pieces_a_page; ++piece) {
        add_products<kHeights>(
            weights_ + (tile * pieces_a_block_ + page * pieces_a_page + piece) * kTileValues,
            pieces_a_block_ * kTileValues,
            values + piece * kTileRows * kTileBytes,
            panel_bytes);
      }
    }
    for_each_constant<2 * kHeights>(
        [&](auto sum) { store_tile<sum()>(place(static_cast<size_t>(sum())), kTileBytes); });
  }

  void finish() const {
    for (size_t row = 0; row < num_rows_; ++row) {
      const size_t idx = begin_ + row;
      scale_vectors(
          sums_of(row),
          kTileFloats,
          layout_.value_panels(),
          1 / softmax_[row].total,
          job_.out + idx / job_.group * job_.out_stride + idx % job_.group * layout_.head_dim,
          kPanel);
    }
  }

  const AttentionJob& job_;
  const PageLayout& layout_;
  const size_t begin_, num_rows_, num_tiles_;
  const size_t num_steps_;  // along a key
  const size_t pages_a_block_, pieces_a_block_, score_stride_;
  uint16_t* queries_;  // [tiles][steps][16][32]
  float* scores_;      // [rows][score_stride_]
  uint16_t* weights_;  // [tiles][pieces][16][32]
  float* sums_;        // [tiles][panels of values][16][16]
  RunningSoftmax softmax_[kTiledAttentionRows];
};

}  // namespace

bool attends_by_tiles(const PageLayout& layout) {
  return layout.format == PageFormat::kBf16 && layout.head_dim % kPieceValues == 0 &&
         layout.page_tokens % kPieceValues == 0 && amx_multiply_panels(Format::kBf16) != nullptr;
}

void attend_rows_by_tiles(const AttentionJob& job,
                          size_t begin,
                          size_t end,
                          AttentionScratch& scratch) {
  PELAGO_ASSERT(end - begin <= kTiledAttentionRows, "whoever cuts rows asks attention_rows_max()");
  TileShapes shapes;
  for (size_t tile = 0; tile < 8; ++tile) shapes.set(tile, kTileRows);
  shape_tiles(shapes);
  TiledRows(job, begin, end, scratch).run();
  release_tiles();
}

#else

bool attends_by_tiles(const PageLayout&) { return false; }
void attend_rows_by_tiles(const AttentionJob&, size_t, size_t, AttentionScratch&) {
  PELAGO_ASSERT(false, "tiles are those of AMX");
}

#endif

}  // namespace pelago::chips::packed
