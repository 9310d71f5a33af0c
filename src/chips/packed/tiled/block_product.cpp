#include "chips/packed/tiled/block_product.h"

#include <algorithm>

#include "base/error.h"
#include "chips/packed/tiled/tile_registers.h"
#include "chips/packed/tiled/tile_steps.h"

namespace pelago::chips::packed {

#if defined(__x86_64__) && defined(__linux__)

namespace {

// Panels whose sums wait in the second cache, for 512 rows 0.5 MB of its 2, beside as much of
// words.
constexpr size_t kGroupPanels = 16;
constexpr size_t kTileFloats = kTileRows * kPanel;
constexpr size_t kSumsFloats = 4 * kTileFloats;  // of 32 rows by a pair of panels
// Sums are tiles 0 to 3: upper rows by two panels, lower rows by them.
constexpr int kUpperRows = 4, kLowerRows = 5, kFirstWeights = 6;
// Rows that take less than this stay in the second cache by themselves.
constexpr size_t kRowsToFetchBytes = 1 << 20;

/// Where a pair of panels' sums of one tile of rows lie.
struct SumsPlace {
  float* at = nullptr;
  size_t stride = kPanel, panel_step = kTileFloats, below = 2 * kTileFloats;  // floats
};

/// What is fetched into the second cache between products, lines at a time.
struct Ahead {
  const std::byte* weights[2] = {nullptr, nullptr};  // of a pair of panels
  size_t weight_lines = 0;                           // of each, a step
  const std::byte* words = nullptr;
  size_t word_lines = 0;

  void fetch() {
    for (size_t line = 0; line < weight_lines; ++line) {
      __builtin_prefetch(weights[0] + line * 64, 0, 2);
      __builtin_prefetch(weights[1] + line * 64, 0, 2);
    }
    weights[0] += weight_lines * 64;
    weights[1] += weight_lines * 64;
    for (size_t line = 0; line < word_lines; ++line) {
      __builtin_prefetch(words + line * 64, 0, 2);
    }
    words += word_lines * 64;
  }
};

/// One block of words of one tile of rows by a pair of panels.
struct Piece {
  const uint32_t* x;
  size_t num_rows, num_words;
  const std::byte* weights;
  size_t panel_bytes;
  const SumsPlace* from;  // null: from 0
  SumsPlace to;
};

template <int kPanels>
void multiply_piece(const Piece& piece, Ahead& ahead) {
  for_each_constant<kPanels>([&](auto panel) {
    if (piece.from == nullptr) {
      clear_tile<panel()>();
      clear_tile<2 + panel()>();
    } else {
      const SumsPlace& from = *piece.from;
      const float* at = from.at + static_cast<size_t>(panel()) * from.panel_step;
      load_tile<panel()>(at, from.stride * sizeof(float));
      load_tile<2 + panel()>(at + from.below, from.stride * sizeof(float));
    }
  });
  const uint32_t* x = piece.x;
  const std::byte* weights = piece.weights;
  for (size_t word = 0; word < piece.num_words; word += kAmxWords) {
    load_tile<kUpperRows>(x, kTileBytes);
    load_tile<kLowerRows>(x + kTileRows * kAmxWords, kTileBytes);
    for_each_constant<kPanels>([&](auto panel) {
      constexpr int kWeights = kFirstWeights + panel();
      load_tile<kWeights>(weights + static_cast<size_t>(panel()) * piece.panel_bytes, kTileBytes);
      add_tile_product<panel(), kUpperRows, kWeights>();
      add_tile_product<2 + panel(), kLowerRows, kWeights>();
    });
    ahead.fetch();
    x += piece.num_rows * kAmxWords;
    weights += kAmxWords * kTileBytes;
  }
  for_each_constant<kPanels>([&](auto panel) {
    float* at = piece.to.at + static_cast<size_t>(panel()) * piece.to.panel_step;
    store_tile<panel()>(at, piece.to.stride * sizeof(float));
    store_tile<2 + panel()>(at + piece.to.below, piece.to.stride * sizeof(float));
  });
}

/// What becomes of whole sums: they are c's, or swiglu of them goes to rows.
struct Results {
  float* c = nullptr;
  size_t c_stride = 0;
  bool adds = false;
  PackedRows* activated = nullptr;

  SumsPlace place(size_t row, size_t panel) const {
    return {.at = c + row * c_stride + panel * kPanel,
            .stride = c_stride,
            .panel_step = kPanel,
            .below = kTileRows * c_stride};
  }
};

/// Panels [begin, end) by all rows.
class RangeProduct {
 public:
  RangeProduct(const PackedRows& x,
               const PackedMatrix& weights,
               size_t begin,
               size_t end,
               float* room,
               const Results& results)
      : x_(x), weights_(weights), begin_(begin), end_(end), room_(room), results_(results) {}

  void run() {
    for (size_t group = begin_; group < end_; group += kGroupPanels) {
      const size_t group_end = std::min(end_, group + kGroupPanels);
      for (size_t word = 0; word < weights_.num_words(); word += x_.block_words()) {
        for (size_t panel = group; panel < group_end; panel += 2) {
          multiply_pair(group, group_end, panel, word);
        }
      }
    }
    release_tiles();
  }

 private:
  void multiply_pair(size_t group, size_t group_end, size_t panel, size_t word) {
    const Tiling& tiling = x_.tiling();
    const size_t num_panels = std::min<size_t>(2, end_ - panel);
    const bool is_last = word + x_.block_words() >= weights_.num_words();
    Ahead ahead = after(group, group_end, panel, word);
    const PanelJob job = weights_.job(panel);
    for (size_t tile = 0; tile < tiling.num_tiles; ++tile) {
      const size_t num_rows = tiling.rows_of(tile);
      shape(num_rows);
      const SumsPlace kept{.at = room_ +
                                 ((panel - group) / 2 * tiling.num_tiles + tile) * kSumsFloats};
      const bool is_of_c = results_.activated == nullptr;
      const SumsPlace in_c = is_of_c ? results_.place(tiling.first_row(tile), panel) : SumsPlace{};
      const Piece piece{.x = x_.tile_words(tile, word),
                        .num_rows = num_rows,
                        .num_words = std::min(x_.block_words(), weights_.num_words() - word),
                        .weights = job.weights + word * kTileBytes,
                        .panel_bytes = job.panel_bytes,
                        .from = word > 0        ? &kept
                                : results_.adds ? &in_c
                                                : nullptr,
                        .to = is_last && is_of_c ? in_c : kept};
      if (num_panels == 2) {
        multiply_piece<2>(piece, ahead);
      } else {
        multiply_piece<1>(piece, ahead);
      }
      if (is_last && !is_of_c) activate(tile, panel, kept.at);
    }
  }

  /// What is read next: the next pair's weights, and meanwhile the next block of words.
  Ahead after(size_t group, size_t group_end, size_t panel, size_t word) const {
    const Tiling& tiling = x_.tiling();
    const size_t next_word =
        word + x_.block_words() < weights_.num_words() ? word + x_.block_words() : 0;
    size_t panel_after = panel + 2, word_after = word;
    if (panel_after >= group_end) {
      panel_after = next_word > 0 ? group : group_end;
      word_after = next_word;
    }
    Ahead ahead;
    if (panel_after < end_) {
      for (const size_t which : {0, 1}) {
        const size_t of = std::min(panel_after + which, end_ - 1);
        ahead.weights[which] = weights_.job(of).weights + word_after * kTileBytes;
      }
      ahead.weight_lines = (kAmxWords + tiling.num_tiles - 1) / tiling.num_tiles;
    }
    if (next_word == word || tiling.num_rows * weights_.num_words() * 4 < kRowsToFetchBytes) {
      return ahead;
    }
    const size_t num_pairs = (group_end - group + 1) / 2, pair = (panel - group) / 2;
    const size_t block_words = std::min(x_.block_words(), weights_.num_words() - next_word);
    const size_t num_lines = tiling.num_rows * (block_words / kAmxWords);
    const size_t num_steps = tiling.num_tiles * x_.block_words() / kAmxWords;
    ahead.word_lines = (num_lines + num_pairs * num_steps - 1) / (num_pairs * num_steps);
    ahead.words = reinterpret_cast<const std::byte*>(x_.tile_words(0, next_word)) +
                  pair * num_steps * ahead.word_lines * 64;
    return ahead;
  }

  void activate(size_t tile, size_t panel, const float* sums) const {
    const size_t num_rows = x_.tiling().rows_of(tile), upper = std::min(num_rows, kTileRows);
    // A pair of panels makes 16 numbers, 8 words.
    auto* to = reinterpret_cast<uint16_t*>(results_.activated->tile_words(tile, panel / 2 * 8));
    swiglu_tile(sums, sums + kTileFloats, upper, to);
    sums += 2 * kTileFloats;
    swiglu_tile(sums, sums + kTileFloats, num_rows - upper, to + upper * 2 * kAmxWords);
  }

  void shape(size_t num_rows) {
    if (num_rows == shaped_for_) return;
    TileShapes shapes;
    for (const size_t upper : {0, 1, kUpperRows}) shapes.set(upper, kTileRows);
    for (const size_t lower : {2, 3, kLowerRows}) shapes.set(lower, num_rows - kTileRows);
    for (const size_t half : {0, 1}) shapes.set(kFirstWeights + half, kAmxWords);
    shape_tiles(shapes);
    shaped_for_ = num_rows;
  }

  const PackedRows& x_;
  const PackedMatrix& weights_;
  const size_t begin_, end_;
  float* const room_;
  const Results results_;
  size_t shaped_for_ = 0;
};

/// grain: of items, each of so many panels.
void share_panels(CoreTeam::Member& member,
                  const PackedRows& x,
                  const PackedMatrix& weights,
                  size_t panels_an_item,
                  const Results& results) {
  const size_t room_bytes = kGroupPanels / 2 * x.tiling().num_tiles * kSumsFloats * sizeof(float);
  auto* room = reinterpret_cast<float*>(member.room(room_bytes));
  const size_t num_items = weights.num_panels() / panels_an_item;
  // Whole groups if each thread gets several, else less, lest some have nothing to do.
  const size_t fair = num_items / (4 * static_cast<size_t>(member.num_threads()));
  const size_t group = kGroupPanels / panels_an_item;
  const size_t grain = std::clamp<size_t>(fair / 2 * 2, std::min<size_t>(2, group), group);
  member.share(num_items, grain, [&](size_t begin, size_t end) {
    RangeProduct(x, weights, begin * panels_an_item, end * panels_an_item, room, results).run();
  });
}

}  // namespace

void multiply_blocks(CoreTeam::Member& member,
                     const PackedRows& x,
                     const PackedMatrix& weights,
                     float* c,
                     size_t c_stride,
                     bool adds) {
  share_panels(member, x, weights, 1, {.c = c, .c_stride = c_stride, .adds = adds});
}

void multiply_swiglu_blocks(CoreTeam::Member& member,
                            const PackedRows& x,
                            const PackedMatrix& gate_up,
                            PackedRows& to) {
  share_panels(member, x, gate_up, 2, {.activated = &to});
}

#else

void multiply_blocks(
    CoreTeam::Member&, const PackedRows&, const PackedMatrix&, float*, size_t, bool) {
  PELAGO_ASSERT(false, "rows are in blocks for AMX alone");
}
void multiply_swiglu_blocks(CoreTeam::Member&,
                            const PackedRows&,
                            const PackedMatrix&,
                            PackedRows&) {
  PELAGO_ASSERT(false, "rows are in blocks for AMX alone");
}

#endif

}  // namespace pelago::chips::packed
