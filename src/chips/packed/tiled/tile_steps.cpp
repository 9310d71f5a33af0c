#include "chips/packed/tiled/tile_steps.h"

#include <cmath>

#include "chips/cpu_kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "chips/packed/tiled/tile_steps.cpp"
#include <hwy/foreach_target.h>

#include "chips/cpu_kernels/values-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pelago::chips::packed {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using cpu::HWY_NAMESPACE::exp2_wide;
using cpu::HWY_NAMESPACE::exp_wide;
using cpu::HWY_NAMESPACE::load_wide;
using cpu::HWY_NAMESPACE::store_wide;
using cpu::HWY_NAMESPACE::WideTag;

constexpr size_t kLanes = 16;  // of a panel; vectors hold as many or a part of them

HWY_INLINE hwy::bfloat16_t* narrow_at(uint16_t* to) {
  return reinterpret_cast<hwy::bfloat16_t*>(to);
}

void round_pieces(
    const float* from, float scale, size_t num_values, uint16_t* to, size_t piece_stride) {
  const WideTag d;
  const auto by = hn::Set(d, scale);
  for (size_t piece = 0; piece < num_values / kPieceValues; ++piece) {
    for (size_t i = 0; i < kPieceValues; i += hn::Lanes(d)) {
      const auto values = hn::Mul(load_wide(from + piece * kPieceValues + i), by);
      store_wide(values, narrow_at(to + piece * piece_stride + i));
    }
  }
}

void activate_tile(const float* gate, const float* up, size_t num_rows, uint16_t* to) {
  const WideTag d;
  for (size_t row = 0; row < num_rows; ++row) {
    for (size_t i = 0; i < kLanes; i += hn::Lanes(d)) {
      const auto g = load_wide(gate + row * kLanes + i);
      const auto bounded = hn::Max(g, hn::Set(d, -88.0F));  // as swiglu() does
      const auto divisor = hn::Add(hn::Set(d, 1.0F), exp_wide(hn::Neg(bounded)));
      store_wide(hn::Mul(hn::Div(g, divisor), load_wide(up + row * kLanes + i)),
                 narrow_at(to + row * kPieceValues + i));
    }
  }
}

float weigh_pieces(const float* scores,
                   size_t num_seen,
                   size_t num_keys,
                   RunningSoftmax& row,
                   uint16_t* to,
                   size_t piece_stride) {
  const WideTag d;
  const size_t lanes = hn::Lanes(d), whole = num_seen / lanes * lanes;
  float shrink = 1.0F;
  if (num_seen > 0) {
    const auto rest = hn::FirstN(d, num_seen - whole);
    auto tops = hn::Set(d, row.largest);
    for (size_t i = 0; i < whole; i += lanes) tops = hn::Max(tops, load_wide(scores + i));
    if (whole < num_seen) {
      tops = hn::Max(tops, hn::IfThenElse(rest, load_wide(scores + whole), tops));
    }
    const float top = hn::GetLane(hn::MaxOfLanes(d, tops));
    const auto tops_all = hn::Set(d, top);
    auto added = hn::Zero(d);
    const auto weigh = [&](size_t i, auto mask) HWY_ATTR {
      const auto weights = mask(exp2_wide(hn::Sub(load_wide(scores + i), tops_all)));
      added = hn::Add(added, weights);
      store_wide(weights, narrow_at(to + i / kPieceValues * piece_stride + i % kPieceValues));
    };
    for (size_t i = 0; i < whole; i += lanes) {
      weigh(i, [](auto weights) HWY_ATTR { return weights; });
    }
    if (whole < num_seen) {
      weigh(whole, [&](auto weights) HWY_ATTR { return hn::IfThenElseZero(rest, weights); });
    }
    shrink = std::exp2(row.largest - top);  // 0 the first time
    row.total = row.total * shrink + hn::GetLane(hn::SumOfLanes(d, added));
    row.largest = top;
  }
  const size_t first_unseen = (num_seen + lanes - 1) / lanes * lanes;
  for (size_t i = first_unseen; i < num_keys; i += lanes) {
    store_wide(hn::Zero(d), narrow_at(to + i / kPieceValues * piece_stride + i % kPieceValues));
  }
  return shrink;
}

void scale_each(const float* from,
                size_t stride,
                size_t num_vectors,
                float scale,
                float* to,
                size_t to_stride) {
  const WideTag d;
  for (size_t vector = 0; vector < num_vectors; ++vector) {
    for (size_t i = 0; i < kLanes; i += hn::Lanes(d)) {
      store_wide(hn::Mul(load_wide(from + vector * stride + i), hn::Set(d, scale)),
                 to + vector * to_stride + i);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pelago::chips::packed
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pelago::chips::packed {
namespace {
HWY_EXPORT(round_pieces);
HWY_EXPORT(activate_tile);
HWY_EXPORT(weigh_pieces);
HWY_EXPORT(scale_each);
}  // namespace

void round_to_pieces(
    const float* from, float scale, size_t num_values, uint16_t* to, size_t piece_stride) {
  HWY_DYNAMIC_DISPATCH(round_pieces)(from, scale, num_values, to, piece_stride);
}
void swiglu_tile(const float* gate, const float* up, size_t num_rows, uint16_t* to) {
  HWY_DYNAMIC_DISPATCH(activate_tile)(gate, up, num_rows, to);
}
float weigh_to_pieces(const float* scores,
                      size_t num_seen,
                      size_t num_keys,
                      RunningSoftmax& row,
                      uint16_t* to,
                      size_t piece_stride) {
  return HWY_DYNAMIC_DISPATCH(weigh_pieces)(scores, num_seen, num_keys, row, to, piece_stride);
}
void scale_vectors(const float* from,
                   size_t stride,
                   size_t num_vectors,
                   float scale,
                   float* to,
                   size_t to_stride) {
  HWY_DYNAMIC_DISPATCH(scale_each)(from, stride, num_vectors, scale, to, to_stride);
}

}  // namespace pelago::chips::packed
#endif  // HWY_ONCE
