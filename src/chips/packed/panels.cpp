// The products for any processor: one panel, one row at a time, 16 lanes in as many vectors as they
// take. What it lacks in speed beside panels_avx512.cpp it makes up for by running everywhere.
#include "chips/packed/panels.h"

#include "chips/cpu_kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "chips/packed/panels.cpp"
#include <hwy/foreach_target.h>

#include "chips/cpu_kernels/values-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pelago::chips::packed {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using cpu::HWY_NAMESPACE::load_wide;
using cpu::HWY_NAMESPACE::store_wide;
using cpu::HWY_NAMESPACE::WideTag;
using WordTag = hn::Rebind<uint32_t, WideTag>;
using LevelTag = hn::Rebind<int32_t, WideTag>;

HWY_INLINE float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// The sums of lanes [lane, lane + vector) of one panel and row.
template <Format kFormat>
HWY_INLINE cpu::HWY_NAMESPACE::Wide float_sums(const PanelJob& job,
                                               const std::byte* weights,
                                               const uint32_t* x,
                                               size_t x_stride,
                                               size_t lane) {
  const WideTag d;
  const WordTag words;
  auto sum = hn::Zero(d);
  const auto* from = reinterpret_cast<const uint32_t*>(weights) + lane;
  for (size_t word = 0; word < job.num_words; ++word, x += x_stride, from += kPanel) {
    const auto bits = hn::LoadU(words, from);
    if constexpr (kFormat == Format::kF32) {
      sum = hn::MulAdd(hn::Set(d, as_float(*x)), hn::BitCast(d, bits), sum);
    } else {
      const auto first = hn::BitCast(d, hn::ShiftLeft<16>(bits));
      const auto second = hn::BitCast(d, hn::And(bits, hn::Set(words, 0xFFFF0000U)));
      sum = hn::MulAdd(hn::Set(d, as_float(*x << 16)), first, sum);
      sum = hn::MulAdd(hn::Set(d, as_float(*x & 0xFFFF0000U)), second, sum);
    }
  }
  return sum;
}

/// The same for levels, added to sum; row: of the tile.
template <Format kFormat>
HWY_INLINE cpu::HWY_NAMESPACE::Wide level_sums(const PanelJob& job,
                                               const std::byte* weights,
                                               const uint16_t* scales,
                                               size_t row,
                                               size_t num_rows,
                                               size_t lane,
                                               cpu::HWY_NAMESPACE::Wide sum) {
  constexpr bool kNibbles = kFormat == Format::kInt4;
  const WideTag d;
  const LevelTag integers;
  const WordTag words;
  const auto mask = hn::Set(words, kNibbles ? 15U : 255U);
  const auto* from = reinterpret_cast<const uint32_t*>(weights) + lane;
  const uint32_t* x = job.x + row;
  for (size_t group = 0; group < job.num_words / job.group_words; ++group) {
    auto levels = hn::Set(integers, job.x_sums[group * num_rows + row]);
    for (size_t word = 0; word < job.group_words; ++word, x += num_rows) {
      const bool is_high = kNibbles && word % 2 == 1;
      auto bits = hn::LoadU(words, from);
      if (is_high) bits = hn::ShiftRight<4>(bits);
      for (uint32_t shift = 0; shift < 32; shift += 8) {
        const auto column = hn::BitCast(integers, hn::And(bits, mask));
        const auto left = static_cast<int32_t>(static_cast<int8_t>(*x >> shift));
        levels = hn::Add(levels, hn::Mul(column, hn::Set(integers, left)));
        bits = hn::ShiftRight<8>(bits);
      }
      if (!kNibbles || is_high) from += kPanel;
    }
    const auto scale =
        load_wide(reinterpret_cast<const hwy::float16_t*>(scales + group * kPanel + lane));
    const auto x_scale = hn::Set(d, job.x_scales[group * num_rows + row]);
    sum = hn::MulAdd(hn::ConvertTo(d, levels), hn::Mul(scale, x_scale), sum);
  }
  return sum;
}

template <Format kFormat>
void multiply(const PanelJob& job, size_t num_rows, size_t num_panels) {
  const size_t lanes = hn::Lanes(WideTag());
  for (size_t panel = 0; panel < num_panels; ++panel) {
    const std::byte* weights = job.weights + panel * job.panel_bytes;
    const uint16_t* scales = job.scales + panel * job.panel_scales;
    for (size_t row = 0; row < num_rows; ++row) {
      float* c = job.c + row * job.c_stride + panel * kPanel;
      for (size_t lane = 0; lane < kPanel; lane += lanes) {
        const auto before = job.adds ? load_wide(c + lane) : hn::Zero(WideTag());
        if constexpr (is_quantised(kFormat)) {
          store_wide(level_sums<kFormat>(job, weights, scales, row, num_rows, lane, before),
                     c + lane);
        } else {
          const auto sum = float_sums<kFormat>(job, weights, job.x + row, num_rows, lane);
          store_wide(hn::Add(before, sum), c + lane);
        }
      }
    }
  }
}

}  // namespace

// Non-templates, which Highway's tables of targets can hold.
void multiply_f32(const PanelJob& job, size_t num_rows, size_t num_panels) {
  multiply<Format::kF32>(job, num_rows, num_panels);
}
void multiply_bf16(const PanelJob& job, size_t num_rows, size_t num_panels) {
  multiply<Format::kBf16>(job, num_rows, num_panels);
}
void multiply_int8(const PanelJob& job, size_t num_rows, size_t num_panels) {
  multiply<Format::kInt8>(job, num_rows, num_panels);
}
void multiply_int4(const PanelJob& job, size_t num_rows, size_t num_panels) {
  multiply<Format::kInt4>(job, num_rows, num_panels);
}

}  // namespace HWY_NAMESPACE
}  // namespace pelago::chips::packed
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pelago::chips::packed {
namespace {
HWY_EXPORT(multiply_f32);
HWY_EXPORT(multiply_bf16);
HWY_EXPORT(multiply_int8);
HWY_EXPORT(multiply_int4);
}  // namespace

MultiplyPanels portable_multiply_panels(Format format) {
  switch (format) {
    case Format::kF32:
      return HWY_DYNAMIC_DISPATCH(multiply_f32);
    case Format::kBf16:
      return HWY_DYNAMIC_DISPATCH(multiply_bf16);
    case Format::kInt8:
      return HWY_DYNAMIC_DISPATCH(multiply_int8);
    default:
      return HWY_DYNAMIC_DISPATCH(multiply_int4);
  }
}

MultiplyPanels multiply_panels(Format format) {
  const MultiplyPanels fastest = avx512_multiply_panels(format);
  return fastest != nullptr ? fastest : portable_multiply_panels(format);
}

}  // namespace pelago::chips::packed
#endif  // HWY_ONCE
