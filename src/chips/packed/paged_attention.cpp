#include "chips/packed/paged_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "chips/cpu_kernels/simd.h"
#include "chips/packed/rows.h"
#include "chips/packed/tiled/tile_attention.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "chips/packed/paged_attention.cpp"
#include <hwy/foreach_target.h>

#include "chips/cpu_kernels/values-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pelago::chips::packed {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using cpu::HWY_NAMESPACE::exp2_wide;
using cpu::HWY_NAMESPACE::for_each_vector;
using cpu::HWY_NAMESPACE::store_wide;
using cpu::HWY_NAMESPACE::Wide;
using cpu::HWY_NAMESPACE::WideTag;

/// One row of scores, of base 2, to weights in place: keys from num_seen on get none. largest and
/// total are brought up to date, and the row's sums so far rescaled to them.
void weigh_row(float* scores,
               size_t num_keys,
               size_t num_seen,
               float* largest,
               float* total,
               float* sums,
               size_t num_sums) {
  const WideTag d;
  if (num_seen == 0) {
    std::fill(scores, scores + num_keys, 0.0F);
    return;
  }
  std::fill(scores + num_seen, scores + num_keys, -std::numeric_limits<float>::infinity());
  auto tops = hn::Set(d, *largest);
  for_each_vector(num_keys, [&](size_t i, auto load, auto) HWY_ATTR {
    tops = hn::Max(tops, load(scores + i));
  });
  const float top = hn::GetLane(hn::MaxOfLanes(d, tops));
  auto added = hn::Zero(d);
  for_each_vector(num_keys, [&](size_t i, auto load, auto store) HWY_ATTR {
    const auto weights = exp2_wide(hn::Sub(load(scores + i), hn::Set(d, top)));
    store(weights, scores + i);
    added = hn::Add(added, weights);
  });
  const float shrink = std::exp2(*largest - top);  // 0 the first time
  *total = *total * shrink + hn::GetLane(hn::SumOfLanes(d, added));
  *largest = top;
  if (shrink == 1.0F) return;
  for_each_vector(num_sums, [&](size_t i, auto load, auto store) HWY_ATTR {
    store(hn::Mul(load(sums + i), hn::Set(d, shrink)), sums + i);
  });
}

void scale_row(const float* from, float scale, size_t num_values, float* to) {
  for_each_vector(num_values, [&](size_t i, auto load, auto store) HWY_ATTR {
    store(hn::Mul(load(from + i), hn::Set(WideTag(), scale)), to + i);
  });
}

void multiply_row(const float* by, size_t num_values, float* values) {
  for_each_vector(num_values, [&](size_t i, auto load, auto store) HWY_ATTR {
    store(hn::Mul(load(values + i), load(by + i)), values + i);
  });
}

/// Levels to bf16, which holds them exactly.
void widen_levels(const int8_t* levels, size_t num_levels, uint16_t* to) {
  const hn::Rebind<int8_t, WideTag> bytes;
  const hn::Rebind<int32_t, WideTag> integers;
  const size_t lanes = hn::Lanes(WideTag());
  for (size_t i = 0; i < num_levels; i += lanes) {
    const auto values =
        hn::ConvertTo(WideTag(), hn::PromoteTo(integers, hn::LoadU(bytes, levels + i)));
    store_wide(values, reinterpret_cast<hwy::bfloat16_t*>(to + i));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pelago::chips::packed
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pelago::chips::packed {
namespace {
HWY_EXPORT(weigh_row);
HWY_EXPORT(scale_row);
HWY_EXPORT(multiply_row);
HWY_EXPORT(widen_levels);

constexpr size_t kAttentionRows = 48;  // 4 tiles
constexpr size_t kBlockKeys = 128;     // of scores, 48 rows of them 24 KB
constexpr float kLog2E = 1.44269504088896341F;

/// Rows of numbers to words, in one tile of a product: word w of row r at w * num_rows + r.
class WordTile {
 public:
  WordTile(bool pairs, size_t num_rows, uint32_t* words)
      : pairs_(pairs), num_rows_(num_rows), words_(words) {}
  /// num_values: even of pairs.
  void put(size_t row, const float* values, size_t num_values, std::vector<float>& scratch) {
    const auto* from = reinterpret_cast<const uint32_t*>(values);
    size_t num_words = num_values;
    if (pairs_) {
      auto* narrow = reinterpret_cast<uint16_t*>(scratch.data());
      round_to_bf16(values, num_values, narrow);
      from = reinterpret_cast<const uint32_t*>(narrow);
      num_words = num_values / 2;
    }
    for (size_t word = 0; word < num_words; ++word) words_[word * num_rows_ + row] = from[word];
  }

 private:
  bool pairs_;
  size_t num_rows_;
  uint32_t* words_;
};

/// What one block of keys and a set of rows have in common.
struct Block {
  const AttentionJob& job;
  const PageLayout& layout;
  size_t row_begin, num_rows;
  Tiling tiling;
  MultiplyPanels product;
  size_t c_stride;  // of scores
  size_t sum_stride;
  AttentionScratch& scratch;

  const std::byte* head_of(size_t page) const {
    return job.memory + static_cast<size_t>(job.pages[page]) * layout.page_bytes() +
           layout.head_offset(job.layer_idx, job.key_head);
  }
  /// int8 pages are widened to scratch.
  const std::byte* words_of(const std::byte* part, size_t num_bytes) const {
    if (layout.format != PageFormat::kInt8) return part;
    HWY_DYNAMIC_DISPATCH(widen_levels)
    (reinterpret_cast<const int8_t*>(part),
     num_bytes,
     reinterpret_cast<uint16_t*>(scratch.page_words.data()));
    return reinterpret_cast<const std::byte*>(scratch.page_words.data());
  }
  const float* scales_of(const std::byte* head) const {
    return reinterpret_cast<const float*>(head + layout.keys_bytes() + layout.values_bytes());
  }

  void score_page(size_t page, size_t column) const {
    const std::byte* head = head_of(page);
    PanelJob panels;
    panels.weights = words_of(head, layout.keys_bytes());
    panels.num_words = layout.words_per_key();
    panels.panel_bytes = panels.num_words * kPanel * 4;
    panels.c_stride = c_stride;
    for (size_t tile = 0; tile < tiling.num_tiles; ++tile) {
      const size_t first = tiling.first_row(tile);
      panels.x = scratch.queries.data() + first * panels.num_words;
      panels.c = scratch.scores.data() + first * c_stride + column;
      product(panels, tiling.rows_of(tile), layout.page_tokens / kPanel);
    }
    if (layout.format != PageFormat::kInt8) return;
    for (size_t row = 0; row < num_rows; ++row) {
      HWY_DYNAMIC_DISPATCH(multiply_row)
      (scales_of(head), layout.page_tokens, scratch.scores.data() + row * c_stride + column);
    }
  }

  /// Weights of values in int8 take the values' scales along.
  void scale_weights(size_t page, size_t column) const {
    if (layout.format != PageFormat::kInt8) return;
    const float* scales = scales_of(head_of(page)) + layout.page_tokens;
    for (size_t row = 0; row < num_rows; ++row) {
      HWY_DYNAMIC_DISPATCH(multiply_row)
      (scales, layout.page_tokens, scratch.scores.data() + row * c_stride + column);
    }
  }

  void mix_page(size_t page, size_t first_word, size_t words_a_row) const {
    PanelJob panels;
    panels.weights = words_of(head_of(page) + layout.keys_bytes(), layout.values_bytes());
    panels.num_words = layout.words_per_page();
    panels.panel_bytes = panels.num_words * kPanel * 4;
    panels.c_stride = sum_stride;
    panels.adds = true;
    for (size_t tile = 0; tile < tiling.num_tiles; ++tile) {
      const size_t first = tiling.first_row(tile);
      const size_t rows = tiling.rows_of(tile);
      panels.x = scratch.weights.data() + first * words_a_row + first_word * rows;
      panels.c = scratch.sums.data() + first * sum_stride;
      product(panels, rows, layout.value_panels());
    }
  }
};

void prepare(const AttentionJob& job, size_t num_rows, size_t c_stride, AttentionScratch& scratch) {
  const PageLayout& layout = *job.layout;
  const size_t sum_stride = layout.value_panels() * kPanel;
  scratch.queries.resize(kAttentionRows * layout.words_per_key());
  scratch.weights.resize(kAttentionRows * c_stride);
  scratch.page_words.resize(std::max(layout.keys_bytes(), layout.values_bytes()) /
                            layout.word_bytes());
  scratch.scores.resize(kAttentionRows * c_stride);
  scratch.row.resize(std::max(c_stride, layout.head_dim) + kPanel);
  scratch.sums.assign(num_rows * sum_stride, 0.0F);
  scratch.largest.assign(num_rows, -std::numeric_limits<float>::infinity());
  scratch.totals.assign(num_rows, 0.0F);
}

}  // namespace

size_t PageLayout::words_per_key() const {
  return format == PageFormat::kF32 ? head_dim : head_dim / 2;
}
size_t PageLayout::words_per_page() const {
  return format == PageFormat::kF32 ? page_tokens : page_tokens / 2;
}
size_t PageLayout::head_bytes() const {
  const size_t scales = format == PageFormat::kInt8 ? 2 * page_tokens * sizeof(float) : 0;
  return (keys_bytes() + values_bytes() + scales + 63) / 64 * 64;
}

namespace {

/// Puts numbers of T at (panel of 16 lanes, element): pairs of elements share a word.
template <typename T, typename Convert>
void put_lanes(const PageLayout& layout,
               std::byte* head,
               size_t slot,
               const float* key,
               const float* value,
               const Convert& convert) {
  constexpr size_t kPair = sizeof(T) == 4 ? 1 : 2;
  auto* keys = reinterpret_cast<T*>(head) +
               slot / kPanel * kPanel * layout.words_per_key() * kPair + slot % kPanel * kPair;
  for (size_t i = 0; i < layout.head_dim; ++i) {
    keys[i / kPair * kPanel * kPair + i % kPair] = convert(key[i], 0);
  }
  auto* values = reinterpret_cast<T*>(head + layout.keys_bytes()) + slot / kPair * kPanel * kPair +
                 slot % kPair;
  for (size_t i = 0; i < layout.head_dim; ++i) {
    const size_t panel = i / kPanel;
    values[panel * layout.words_per_page() * kPanel * kPair + i % kPanel * kPair] =
        convert(value[i], 1);
  }
}

uint16_t bf16_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

float largest_of(const float* values, size_t num_values) {
  float largest = 0;
  for (size_t i = 0; i < num_values; ++i) largest = std::max(largest, std::fabs(values[i]));
  return largest;
}

}  // namespace

void put_key_value(const PageLayout& layout,
                   std::byte* head,
                   size_t position,
                   const float* key,
                   const float* value) {
  const size_t slot = position % layout.page_tokens;
  if (layout.format == PageFormat::kF32) {
    return put_lanes<float>(layout, head, slot, key, value, [](float x, int) { return x; });
  }
  if (layout.format == PageFormat::kBf16) {
    return put_lanes<uint16_t>(
        layout, head, slot, key, value, [](float x, int) { return bf16_of(x); });
  }
  auto* scales = reinterpret_cast<float*>(head + layout.keys_bytes() + layout.values_bytes());
  const float tops[2] = {largest_of(key, layout.head_dim), largest_of(value, layout.head_dim)};
  scales[slot] = tops[0] / 127.0F;
  scales[layout.page_tokens + slot] = tops[1] / 127.0F;
  const float inverse[2] = {tops[0] > 0 ? 127.0F / tops[0] : 0, tops[1] > 0 ? 127.0F / tops[1] : 0};
  put_lanes<int8_t>(layout, head, slot, key, value, [&](float x, int which) {
    return static_cast<int8_t>(std::clamp(std::nearbyint(x * inverse[which]), -127.0F, 127.0F));
  });
}

namespace {

void pack_queries(const Block& block, bool pairs) {
  const AttentionJob& job = block.job;
  const size_t head_dim = block.layout.head_dim;
  const float scale = kLog2E / std::sqrt(static_cast<float>(head_dim));
  std::vector<float> query(head_dim + kPanel);
  for (size_t tile = 0; tile < block.tiling.num_tiles; ++tile) {
    const size_t first = block.tiling.first_row(tile), rows = block.tiling.rows_of(tile);
    WordTile words(
        pairs, rows, block.scratch.queries.data() + first * block.layout.words_per_key());
    for (size_t row = 0; row < rows; ++row) {
      const size_t idx = block.row_begin + first + row;
      const float* from =
          job.queries + idx / job.group * job.query_stride + idx % job.group * head_dim;
      HWY_DYNAMIC_DISPATCH(scale_row)(from, scale, head_dim, query.data());
      words.put(row, query.data(), head_dim, block.scratch.row);
    }
  }
}

/// Keys [first_key, first_key + num_pages pages): their scores, weights, and share of the sums.
void attend_block(const Block& block, size_t first_key, size_t num_pages, bool pairs) {
  const PageLayout& layout = block.layout;
  AttentionScratch& scratch = block.scratch;
  const size_t first_page = first_key / layout.page_tokens;
  const size_t num_keys = num_pages * layout.page_tokens;
  for (size_t page = 0; page < num_pages; ++page) {
    block.score_page(first_page + page, page * layout.page_tokens);
  }
  for (size_t row = 0; row < block.num_rows; ++row) {
    const size_t position = block.job.first_position + (block.row_begin + row) / block.job.group;
    HWY_DYNAMIC_DISPATCH(weigh_row)
    (scratch.scores.data() + row * block.c_stride,
     num_keys,
     position < first_key ? 0 : std::min(num_keys, position + 1 - first_key),
     &scratch.largest[row],
     &scratch.totals[row],
     scratch.sums.data() + row * block.sum_stride,
     block.sum_stride);
  }
  for (size_t page = 0; page < num_pages; ++page) {
    block.scale_weights(first_page + page, page * layout.page_tokens);
  }
  const size_t words_a_row = pairs ? num_keys / 2 : num_keys;
  for (size_t tile = 0; tile < block.tiling.num_tiles; ++tile) {
    const size_t first = block.tiling.first_row(tile), rows = block.tiling.rows_of(tile);
    WordTile words(pairs, rows, scratch.weights.data() + first * words_a_row);
    for (size_t row = 0; row < rows; ++row) {
      words.put(row, scratch.scores.data() + (first + row) * block.c_stride, num_keys, scratch.row);
    }
  }
  for (size_t page = 0; page < num_pages; ++page) {
    block.mix_page(first_page + page, page * layout.words_per_page(), words_a_row);
  }
}

}  // namespace

size_t attention_rows_max(const PageLayout& layout) {
  return attends_by_tiles(layout) ? kTiledAttentionRows : kAttentionRows;
}

void attend_rows(const AttentionJob& job, size_t begin, size_t end, AttentionScratch& scratch) {
  const PageLayout& layout = *job.layout;
  if (attends_by_tiles(layout)) return attend_rows_by_tiles(job, begin, end, scratch);
  const bool pairs = layout.format != PageFormat::kF32;
  const Format format = pairs ? Format::kBf16 : Format::kF32;
  const size_t pages_a_block = std::max<size_t>(1, kBlockKeys / layout.page_tokens);
  const size_t block_keys = pages_a_block * layout.page_tokens;
  const Block block{.job = job,
                    .layout = layout,
                    .row_begin = begin,
                    .num_rows = end - begin,
                    .tiling = Tiling(end - begin, tile_rows(format)),
                    .product = multiply_panels(format),
                    .c_stride = block_keys,
                    .sum_stride = layout.value_panels() * kPanel,
                    .scratch = scratch};
  prepare(job, end - begin, block_keys, scratch);
  pack_queries(block, pairs);
  const size_t num_keys = job.first_position + (end - 1) / job.group + 1;  // that the last row sees
  for (size_t key = 0; key < num_keys; key += block_keys) {
    const size_t pages_left = (num_keys - key + layout.page_tokens - 1) / layout.page_tokens;
    attend_block(block, key, std::min(pages_a_block, pages_left), pairs);
  }
  for (size_t row = 0; row < end - begin; ++row) {
    const size_t idx = begin + row;
    float* to = job.out + idx / job.group * job.out_stride + idx % job.group * layout.head_dim;
    HWY_DYNAMIC_DISPATCH(scale_row)
    (scratch.sums.data() + row * block.sum_stride, 1 / scratch.totals[row], layout.head_dim, to);
  }
}

}  // namespace pelago::chips::packed
#endif  // HWY_ONCE
