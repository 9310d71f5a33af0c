// Loading numbers of any training dtype as f32 vectors and storing them back, rounded to nearest
// even; exp by Highway alone. Included once an instruction set, hence the toggled guard.
#ifndef PELAGO_SIMD_TARGETS
#error "include chips/cpu_kernels/simd.h (dtype.h has it) before Highway"
#endif

#include <hwy/highway.h>  // once an instruction set, therefore outside the guard

#include <cstdint>
#include <cstring>

#if defined(PELAGO_CHIPS_CPU_KERNELS_VALUES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PELAGO_CHIPS_CPU_KERNELS_VALUES_INL_H_
#undef PELAGO_CHIPS_CPU_KERNELS_VALUES_INL_H_
#else
#define PELAGO_CHIPS_CPU_KERNELS_VALUES_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace pelago::chips::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using WideTag = hn::ScalableTag<float>;
using Wide = hn::Vec<WideTag>;
using NarrowBits = hn::Rebind<uint16_t, WideTag>;

inline size_t wide_lanes() { return hn::Lanes(WideTag()); }

HWY_INLINE Wide load_wide(const float* from) { return hn::LoadU(WideTag(), from); }

HWY_INLINE Wide load_wide(const hwy::bfloat16_t* from) {
  const hn::Rebind<uint32_t, WideTag> words;
  const auto bits = hn::LoadU(NarrowBits(), reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(WideTag(), hn::ShiftLeft<16>(hn::PromoteTo(words, bits)));
}

HWY_INLINE Wide load_wide(const hwy::float16_t* from) {
  const hn::Rebind<hwy::float16_t, WideTag> halves;
  return hn::PromoteTo(WideTag(), hn::LoadU(halves, from));
}

/// The bits of bf16 in the low half of each word, rounded to nearest even. A NaN keeps its upper
/// bits, with the quiet bit set, lest rounding turn it into infinity.
HWY_INLINE hn::Vec<hn::Rebind<uint32_t, WideTag>> bf16_words(Wide values) {
  const hn::Rebind<uint32_t, WideTag> words;
  const auto bits = hn::BitCast(words, values);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(words, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(words, 0x7FFF)));
  const auto quiet = hn::Or(bits, hn::Set(words, 0x400000));
  const auto is_nan = hn::RebindMask(words, hn::IsNaN(values));
  return hn::ShiftRight<16>(hn::IfThenElse(is_nan, quiet, rounded));
}

HWY_INLINE void store_wide(Wide values, float* to) { hn::StoreU(values, WideTag(), to); }

HWY_INLINE void store_wide(Wide values, hwy::bfloat16_t* to) {
  const auto narrow = hn::TruncateTo(NarrowBits(), bf16_words(values));
  hn::StoreU(narrow, NarrowBits(), reinterpret_cast<uint16_t*>(to));
}

HWY_INLINE void store_wide(Wide values, hwy::float16_t* to) {
  const hn::Rebind<hwy::float16_t, WideTag> halves;
  hn::StoreU(hn::DemoteTo(halves, values), halves, to);
}

/// The first num_values < lanes numbers; the other lanes are 0.
template <typename T>
HWY_INLINE Wide load_wide_part(const T* from, size_t num_values) {
  HWY_ALIGN T part[hn::MaxLanes(WideTag())] = {};
  std::memcpy(part, from, num_values * sizeof(T));
  return load_wide(part);
}

template <typename T>
HWY_INLINE void store_wide_part(Wide values, T* to, size_t num_values) {
  HWY_ALIGN T part[hn::MaxLanes(WideTag())];
  store_wide(values, part);
  std::memcpy(to, part, num_values * sizeof(T));
}

/// Calls body(begin, load, store) for every vector of [0, num_values); load(pointer) and
/// store(vector, pointer) handle the short one at the end.
template <typename Body>
HWY_INLINE void for_each_vector(size_t num_values, const Body& body) {
  const size_t lanes = wide_lanes();
  size_t begin = 0;
  for (; begin + lanes <= num_values; begin += lanes) {
    body(
        begin,
        [](const auto* from) HWY_ATTR { return load_wide(from); },
        [](Wide values, auto* to) HWY_ATTR { store_wide(values, to); });
  }
  if (const size_t rest = num_values - begin; rest > 0) {
    body(
        begin,
        [rest](const auto* from) HWY_ATTR { return load_wide_part(from, rest); },
        [rest](Wide values, auto* to) HWY_ATTR { store_wide_part(values, to, rest); });
  }
}

/// 2^x for x <= 127, to 1e-7 relative; 0 below 2^-126; NaN stays NaN. Taylor's series to x^7 on
/// [-0.5, 0.5], the last term folded into the lower odd ones by Chebyshev's polynomial T7: 2e-9 off
/// before rounding.
HWY_INLINE Wide exp2_wide(Wide x) {
  const WideTag d;
  const hn::Rebind<int32_t, WideTag> integers;
  const auto whole = hn::Round(x);
  const auto rest = hn::Sub(x, whole);
  auto sum = hn::Set(d, 1.5403530e-4F);
  sum = hn::MulAdd(sum, rest, hn::Set(d, 1.3400288e-3F));
  sum = hn::MulAdd(sum, rest, hn::Set(d, 9.6181291e-3F));
  sum = hn::MulAdd(sum, rest, hn::Set(d, 5.5503274e-2F));
  sum = hn::MulAdd(sum, rest, hn::Set(d, 2.40226507e-1F));
  sum = hn::MulAdd(sum, rest, hn::Set(d, 6.9314720663e-1F));
  sum = hn::MulAdd(sum, rest, hn::Set(d, 1.0F));
  const auto exponent = hn::ShiftLeft<23>(hn::ConvertTo(integers, whole));
  const auto power = hn::BitCast(d, hn::Add(hn::BitCast(integers, sum), exponent));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0F)), power);
}

inline constexpr float kLog2E = 1.44269504088896341F;

HWY_INLINE Wide exp_wide(Wide x) { return exp2_wide(hn::Mul(x, hn::Set(WideTag(), kLog2E))); }

}  // namespace HWY_NAMESPACE
}  // namespace pelago::chips::cpu
HWY_AFTER_NAMESPACE();

#endif  // toggled guard
