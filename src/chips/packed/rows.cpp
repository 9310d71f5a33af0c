#include "chips/packed/rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/error.h"
#include "chips/cpu_kernels/simd.h"
#include "chips/packed/tiled/tile_levels.h"
#include "chips/packed/tiled/block_product.h"
#include "chips/packed/tiled/tile_steps.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "chips/packed/rows.cpp"
#include <hwy/foreach_target.h>

#include "chips/cpu_kernels/values-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pelago::chips::packed {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using cpu::HWY_NAMESPACE::exp_wide;
using cpu::HWY_NAMESPACE::for_each_vector;
using cpu::HWY_NAMESPACE::store_wide;
using cpu::HWY_NAMESPACE::WideTag;

void norm_row(const float* x, const float* weight, size_t num_values, double eps, float* out) {
  const WideTag d;
  auto first = hn::Zero(d);
  for_each_vector(num_values, [&](size_t i, auto load, auto) HWY_ATTR {
    const auto values = load(x + i);
    first = hn::MulAdd(values, values, first);
  });
  const double mean =
      static_cast<double>(hn::GetLane(hn::SumOfLanes(d, first))) / static_cast<double>(num_values);
  const auto scale = hn::Set(d, static_cast<float>(1.0 / std::sqrt(mean + eps)));
  for_each_vector(num_values, [&](size_t i, auto load, auto store) HWY_ATTR {
    store(hn::Mul(hn::Mul(load(x + i), scale), load(weight + i)), out + i);
  });
}

void swiglu_row(const float* gate, const float* up, size_t num_values, float* out) {
  const WideTag d;
  for_each_vector(num_values, [&](size_t i, auto load, auto store) HWY_ATTR {
    const auto g = load(gate + i);
    const auto bounded = hn::Max(g, hn::Set(d, -88.0F));  // exp(88) is the last below infinity
    const auto divisor = hn::Add(hn::Set(d, 1.0F), exp_wide(hn::Neg(bounded)));
    store(hn::Mul(hn::Div(g, divisor), load(up + i)), out + i);
  });
}

/// columns: [num_rows][stride], pairs of 16 gates and 16 ups; h: 16 columns a pair.
void swiglu_pairs(const float* columns,
                  size_t stride,
                  size_t num_rows,
                  size_t num_pairs,
                  float* h,
                  size_t h_stride) {
  for (size_t row = 0; row < num_rows; ++row) {
    for (size_t pair = 0; pair < num_pairs; ++pair) {
      const float* gate = columns + row * stride + pair * 2 * kPanel;
      swiglu_row(gate, gate + kPanel, kPanel, h + row * h_stride + pair * kPanel);
    }
  }
}

void rotate_head(float* head, const float* cos, const float* sin, size_t head_dim) {
  const size_t half = head_dim / 2;
  for_each_vector(half, [&](size_t i, auto load, auto store) HWY_ATTR {
    const auto a = load(head + i), b = load(head + half + i);
    const auto c = load(cos + i), s = load(sin + i);
    store(hn::NegMulAdd(b, s, hn::Mul(a, c)), head + i);
    store(hn::MulAdd(a, s, hn::Mul(b, c)), head + half + i);
  });
}

void add_row(const float* from, size_t num_values, float* to) {
  for_each_vector(num_values, [&](size_t i, auto load, auto store) HWY_ATTR {
    store(hn::Add(load(from + i), load(to + i)), to + i);
  });
}

void exp_below_row(const float* from, float top, float scale, size_t num_values, float* to) {
  const WideTag d;
  for_each_vector(num_values, [&](size_t i, auto load, auto store) HWY_ATTR {
    const auto below = hn::Sub(load(from + i), hn::Set(d, top));
    store(exp_wide(hn::Mul(below, hn::Set(d, scale))), to + i);
  });
}

void narrow_row(const float* from, size_t num_values, uint16_t* to) {
  for_each_vector(num_values, [&](size_t i, auto load, auto store) HWY_ATTR {
    store(load(from + i), reinterpret_cast<hwy::bfloat16_t*>(to + i));
  });
}

void widen_row(const uint16_t* from, size_t num_values, float* to) {
  for_each_vector(num_values, [&](size_t i, auto load, auto store) HWY_ATTR {
    store(load(reinterpret_cast<const hwy::bfloat16_t*>(from + i)), to + i);
  });
}

/// One group to signed levels of 8 bits. Returns the scale.
float round_group(const float* values, size_t num_values, int8_t* levels, int32_t* level_sum) {
  const WideTag d;
  const hn::Rebind<int32_t, WideTag> integers;
  const hn::Rebind<int8_t, WideTag> bytes;
  auto largest = hn::Zero(d);
  for_each_vector(num_values, [&](size_t i, auto load, auto) HWY_ATTR {
    largest = hn::Max(largest, hn::Abs(load(values + i)));
  });
  const float top = hn::GetLane(hn::MaxOfLanes(d, largest));
  // A value that is not finite makes its sums so too, as it would unrounded.
  const float scale = top / 127.0F;
  const auto inverse = hn::Set(d, top > 0 ? 127.0F / top : 0.0F);
  auto sums = hn::Zero(integers);
  for (size_t i = 0; i < num_values; i += hn::Lanes(d)) {
    const auto level = hn::NearestInt(hn::Mul(hn::LoadU(d, values + i), inverse));
    sums = hn::Add(sums, level);
    hn::StoreU(hn::DemoteTo(bytes, level), bytes, levels + i);
  }
  *level_sum = hn::GetLane(hn::SumOfLanes(integers, sums));
  return scale;
}

/// Lays the words of one row num_rows apart.
void scatter_words(const uint32_t* from, size_t num_words, size_t num_rows, uint32_t* to) {
  if (num_rows == 1) {
    std::memcpy(to, from, num_words * 4);
    return;
  }
  for (size_t word = 0; word < num_words; ++word) to[word * num_rows] = from[word];
}

}  // namespace HWY_NAMESPACE
}  // namespace pelago::chips::packed
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pelago::chips::packed {
namespace {
HWY_EXPORT(norm_row);
HWY_EXPORT(swiglu_row);
HWY_EXPORT(swiglu_pairs);
HWY_EXPORT(rotate_head);
HWY_EXPORT(add_row);
HWY_EXPORT(exp_below_row);
HWY_EXPORT(narrow_row);
HWY_EXPORT(widen_row);
HWY_EXPORT(round_group);
HWY_EXPORT(scatter_words);

// Of panels that several tiles pass over: a pair of them stays in the second cache, half of it in
// the first. 256 and 1024 are a twentieth slower.
constexpr size_t kBlockWords = 512;
constexpr size_t kBlockPanels = 2;
// Of AMX all rows' words and the sums of a group of panels share the second cache.
constexpr size_t kAmxBlockWords = 256;
// Levels it multiplies so fast that it would wait for rows, read anew for each pair of panels. Two
// pairs at a time are 8 to 24 % faster than one; four are between 3 % slower and 8 % faster.
constexpr size_t kAmxLevelPanels = 4;

/// Makes a job's panels of 4 bits such of 8, in memory that holds them.
void widen(PanelJob& job, size_t num_panels, std::byte* to) {
  const size_t num_bytes = job.num_words * panel_word_bytes(Format::kInt8);
  for (size_t panel = 0; panel < num_panels; ++panel) {
    widen_nibbles(job.weights + panel * job.panel_bytes, job.num_words, to + panel * num_bytes);
  }
  job.weights = to;
  job.panel_bytes = num_bytes;
}

/// Puts products with all rows into c, where panel begin is c's first.
void multiply_range(const PackedRows& x,
                    const PackedMatrix& weights,
                    size_t begin,
                    size_t end,
                    float* c,
                    size_t c_stride,
                    bool adds) {
  const Tiling& tiling = x.tiling();
  PanelJob job = weights.job(begin);
  job.c_stride = c_stride;
  if (tiling.num_tiles == 1) {
    x.point(job, 0, 0);
    job.c = c;
    job.adds = adds;
    x.product()(job, tiling.num_rows, end - begin);
    return;
  }
  const bool is_levels_by_amx = x.is_for_amx() && is_quantised(weights.format());
  const size_t panels_at_once = is_levels_by_amx ? kAmxLevelPanels : kBlockPanels;
  const size_t words_at_once = x.is_for_amx() && !is_levels_by_amx ? x.block_words() : kBlockWords;
  // By AMX nibbles are made bytes once for all tiles.
  const bool widens = is_levels_by_amx && weights.format() == Format::kInt4;
  const MultiplyPanels product = widens ? amx_multiply_levels(Format::kInt8) : x.product();
  alignas(64) std::byte bytes[kAmxLevelPanels * kBlockWords * panel_word_bytes(Format::kInt8)];
  const size_t group = std::max<size_t>(1, weights.group_words());
  const size_t step = x.is_for_amx() ? std::lcm(group, kAmxWords) : group;
  const size_t block = std::max(step, words_at_once / step * step);
  for (size_t panel = begin; panel < end; panel += panels_at_once) {
    const size_t num_panels = std::min(panels_at_once, end - panel);
    for (size_t word = 0; word < weights.num_words(); word += block) {
      job = weights.job(panel);
      job.weights += word * panel_word_bytes(weights.format());
      job.scales += word / group * kPanel;
      job.num_words = std::min(block, weights.num_words() - word);
      job.c_stride = c_stride;
      job.adds = adds || word > 0;
      if (widens) widen(job, num_panels, bytes);
      const size_t next_word = word + block < weights.num_words() ? word + block : 0;
      const size_t next_panel = next_word > 0 ? panel : panel + panels_at_once;
      for (size_t tile = 0; tile < tiling.num_tiles; ++tile) {
        // The first tiles fetch a panel each of the next block: else the first one would wait
        // for memory, which has nothing to do while the others multiply.
        job.ahead = tile < panels_at_once && next_panel + tile < end
                        ? weights.job(next_panel + tile).weights +
                              next_word * panel_word_bytes(weights.format())
                        : nullptr;
        x.point(job, tile, word);
        job.c = c + tiling.first_row(tile) * c_stride + (panel - begin) * kPanel;
        product(job, tiling.rows_of(tile), num_panels);
      }
    }
  }
}

}  // namespace

void rms_norm(const float* x, const float* weight, size_t num_values, double eps, float* out) {
  HWY_DYNAMIC_DISPATCH(norm_row)(x, weight, num_values, eps, out);
}
void swiglu(const float* gate, const float* up, size_t num_values, float* out) {
  HWY_DYNAMIC_DISPATCH(swiglu_row)(gate, up, num_values, out);
}
void rotate(float* head, const float* cos, const float* sin, size_t head_dim) {
  HWY_DYNAMIC_DISPATCH(rotate_head)(head, cos, sin, head_dim);
}
void add(const float* from, size_t num_values, float* to) {
  HWY_DYNAMIC_DISPATCH(add_row)(from, num_values, to);
}
void exp_below(const float* from, float top, float scale, size_t num_values, float* to) {
  HWY_DYNAMIC_DISPATCH(exp_below_row)(from, top, scale, num_values, to);
}
void round_to_bf16(const float* from, size_t num_values, uint16_t* to) {
  HWY_DYNAMIC_DISPATCH(narrow_row)(from, num_values, to);
}
void widen_bf16(const uint16_t* from, size_t num_values, float* to) {
  HWY_DYNAMIC_DISPATCH(widen_row)(from, num_values, to);
}

PackedRows::PackedRows(size_t rows_max, size_t inputs_max)
    : words_(rows_max * inputs_max * sizeof(uint32_t)),
      scales_(rows_max * (inputs_max / 32 + 1)),
      sums_(rows_max * (inputs_max / 32 + 1)) {}

MultiplyPanels PackedRows::amx_product(size_t num_rows) const {
  if (!is_quantised(format_)) {
    return num_inputs_ % kPieceValues == 0 ? amx_multiply_panels(format_) : nullptr;
  }
  const bool is_faster = num_words_ % kAmxWords == 0 && num_rows >= kAmxLevelRowsMin;
  return is_faster ? amx_multiply_levels(format_) : nullptr;
}

void PackedRows::begin(size_t num_rows, const PackedMatrix& weights) {
  format_ = weights.format();
  num_inputs_ = static_cast<size_t>(weights.num_inputs());
  num_words_ = weights.num_words();
  group_words_ = weights.group_words();
  const MultiplyPanels by_amx = amx_product(num_rows);
  is_for_amx_ = by_amx != nullptr;
  product_ = is_for_amx_ ? by_amx : multiply_panels(format_);
  tiling_ = Tiling(num_rows, is_for_amx_ ? kAmxRows : tile_rows(format_));
  block_words_ = num_words_;
  if (is_for_amx_ && !is_quantised(format_)) {
    const size_t num_blocks = (num_words_ + kAmxBlockWords - 1) / kAmxBlockWords;
    block_words_ = (num_words_ / kAmxWords + num_blocks - 1) / num_blocks * kAmxWords;
  }
  PELAGO_ASSERT(num_rows * num_words_ * sizeof(uint32_t) <= words_.num_bytes(),
                "the room is that of the largest product");
}

void PackedRows::put(size_t row_idx, const float* values, uint16_t* scratch) {
  size_t tile = row_idx * tiling_.num_tiles / tiling_.num_rows;
  while (tiling_.first_row(tile + 1) <= row_idx) ++tile;
  const size_t first = tiling_.first_row(tile);
  const size_t rows = tiling_.rows_of(tile);
  if (is_for_amx_ && !is_quantised(format_)) {
    for (size_t word = 0; word < num_words_; word += block_words_) {
      round_to_pieces(
          values + 2 * word,
          1.0F,
          2 * std::min(block_words_, num_words_ - word),
          reinterpret_cast<uint16_t*>(tile_words(tile, word) + (row_idx - first) * kAmxWords),
          2 * rows * kAmxWords);
    }
    return;
  }
  uint32_t* to = words() + first * num_words_ + (row_idx - first);
  if (format_ == Format::kF32) {
    HWY_DYNAMIC_DISPATCH(scatter_words)
    (reinterpret_cast<const uint32_t*>(values), num_words_, rows, to);
    return;
  }
  if (format_ == Format::kBf16) {
    round_to_bf16(values, num_inputs_, scratch);
    if (num_inputs_ % 2 != 0) scratch[num_inputs_] = 0;
  } else {
    auto* levels = reinterpret_cast<int8_t*>(scratch);
    const size_t group_values = group_words_ * 4;
    const size_t num_groups = num_words_ / group_words_;
    float* scales = scales_.data() + first * num_groups + (row_idx - first);
    int32_t* sums = sums_.data() + first * num_groups + (row_idx - first);
    for (size_t group = 0; group < num_groups; ++group) {
      const size_t at = group * group_values;
      int32_t sum = 0;
      scales[group * rows] =
          HWY_DYNAMIC_DISPATCH(round_group)(values + at, group_values, levels + at, &sum);
      sums[group * rows] = -level_offset(format_) * sum;
    }
  }
  const auto* from = reinterpret_cast<const uint32_t*>(scratch);
  if (!is_for_amx_) {
    HWY_DYNAMIC_DISPATCH(scatter_words)(from, num_words_, rows, to);
    return;
  }
  to = words() + first * num_words_ + (row_idx - first) * kAmxWords;
  for (size_t word = 0; word < num_words_; word += kAmxWords, to += rows * kAmxWords) {
    std::memcpy(to, from + word, kAmxWords * 4);
  }
}

size_t PackedRows::place(size_t tile, size_t word) const {
  const size_t begin = word / block_words_ * block_words_;
  const size_t length = std::min(block_words_, num_words_ - begin);
  return begin * tiling_.num_rows + tiling_.first_row(tile) * length +
         (word - begin) / kAmxWords * kAmxWords * tiling_.rows_of(tile) +
         (is_for_amx_ ? word % kAmxWords : word % kAmxWords * tiling_.rows_of(tile));
}

void PackedRows::point(PanelJob& job, size_t tile, size_t first_word) const {
  const size_t first = tiling_.first_row(tile);
  const size_t rows = tiling_.rows_of(tile);
  job.x = tile_words(tile, first_word);
  if (!is_quantised(format_)) return;
  const size_t side = first * (num_words_ / group_words_) + first_word / group_words_ * rows;
  job.x_scales = scales_.data() + side;
  job.x_sums = sums_.data() + side;
}

// Of panels for one row, four at a time are what its product takes.
constexpr size_t kPanelGrain = 4;
// What one core fetches in the time that it waits, and its second cache has room for.
constexpr size_t kAheadBytes = 256 << 10;

void expect(CoreTeam::Member& member, const PackedMatrix& weights) {
  const size_t panel = member.first_item(weights.num_panels(), kPanelGrain);
  const size_t panel_bytes = weights.job(0).panel_bytes;
  const size_t num_panels = std::min(weights.num_panels() - panel, kAheadBytes / panel_bytes + 1);
  member.will_read(weights.job(panel).weights, num_panels * panel_bytes);
}

void multiply(CoreTeam::Member& member,
              const PackedRows& x,
              const PackedMatrix& weights,
              float* c,
              size_t c_stride,
              bool adds) {
  if (x.is_in_blocks()) return multiply_blocks(member, x, weights, c, c_stride, adds);
  member.share(weights.num_panels(), kPanelGrain, [&](size_t begin, size_t end) {
    multiply_range(x, weights, begin, end, c + begin * kPanel, c_stride, adds);
  });
}

void multiply_swiglu(CoreTeam::Member& member,
                     const PackedRows& x,
                     const PackedMatrix& gate_up,
                     PackedRows& to,
                     float* h,
                     size_t h_stride,
                     uint16_t* scratch) {
  if (x.is_in_blocks() && to.is_in_blocks()) {
    return multiply_swiglu_blocks(member, x, gate_up, to);
  }
  const size_t num_rows = x.tiling().num_rows;
  std::vector<float> columns(num_rows * 4 * kPanel);  // two pairs at a time
  member.share(gate_up.num_panels() / 2, kPanelGrain / 2, [&](size_t begin, size_t end) {
    for (size_t pair = begin; pair < end; pair += 2) {
      const size_t num_pairs = std::min<size_t>(2, end - pair);
      multiply_range(
          x, gate_up, 2 * pair, 2 * (pair + num_pairs), columns.data(), 4 * kPanel, false);
      HWY_DYNAMIC_DISPATCH(swiglu_pairs)
      (columns.data(), 4 * kPanel, num_rows, num_pairs, h + pair * kPanel, h_stride);
    }
  });
  member.share(num_rows, 4, [&](size_t begin, size_t end) {
    for (size_t row = begin; row < end; ++row) to.put(row, h + row * h_stride, scratch);
  });
}

}  // namespace pelago::chips::packed
#endif  // HWY_ONCE
