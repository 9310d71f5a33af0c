// Quantisation of whole blocks by Highway. Only + - x / and rounding to nearest even, each of them
// exact by IEEE 754 and none fused, so every instruction set makes the same bytes.
#include "chips/cpu_kernels/quantise_blocks.h"

#include <algorithm>
#include <bit>

#include "chips/cpu_kernels/simd.h"
#include "chips/kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "chips/cpu_kernels/quantise_blocks.cpp"
#include <hwy/foreach_target.h>

#include "chips/cpu_kernels/values-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pelago::chips::cpu {
namespace HWY_NAMESPACE {
namespace {

constexpr size_t kBlock = static_cast<size_t>(kQuantBlock);

using SignedTag = hn::Rebind<int32_t, WideTag>;
using ByteTag = hn::Rebind<int8_t, WideTag>;

/// Bits of the largest magnitude; magnitudes are ordered as their bits are.
HWY_INLINE uint32_t largest_bits(const float* block) {
  const SignedTag integers;
  auto largest = hn::Zero(integers);
  for (size_t i = 0; i < kBlock; i += wide_lanes()) {
    const auto bits = hn::BitCast(integers, load_wide(block + i));
    largest = hn::Max(largest, hn::And(bits, hn::Set(integers, 0x7FFFFFFF)));
  }
  return static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(integers, largest)));
}

/// levels: [64].
HWY_INLINE void round_block(const float* block, float scale, float largest_level, int8_t* levels) {
  const WideTag d;
  const auto divisor = hn::Set(d, scale);
  const auto top = hn::Set(d, largest_level);
  const auto bottom = hn::Set(d, -largest_level);
  for (size_t i = 0; i < kBlock; i += hn::Lanes(d)) {
    const auto quotient = hn::Div(load_wide(block + i), divisor);
    const auto level = hn::Round(hn::Min(hn::Max(quotient, bottom), top));
    hn::StoreU(hn::DemoteTo(ByteTag(), hn::ConvertTo(SignedTag(), level)), ByteTag(), levels + i);
  }
}

/// 64 levels to 32 bytes, the even one in the low nibble.
HWY_INLINE void pack_nibbles(const int8_t* levels, uint8_t* bytes) {
  const hn::CappedTag<uint16_t, kBlock / 2> pairs;
  const hn::Rebind<uint8_t, decltype(pairs)> narrow;
  for (size_t i = 0; i < kBlock / 2; i += hn::Lanes(pairs)) {
    const auto pair = hn::LoadU(pairs, reinterpret_cast<const uint16_t*>(levels) + i);
    const auto low = hn::And(pair, hn::Set(pairs, 0x000F));
    const auto high = hn::And(hn::ShiftRight<4>(pair), hn::Set(pairs, 0x00F0));
    hn::StoreU(hn::TruncateTo(narrow, hn::Or(low, high)), narrow, bytes + i);
  }
}

HWY_INLINE void unpack_nibbles(const uint8_t* bytes, int8_t* levels) {
  const hn::CappedTag<uint16_t, kBlock / 2> pairs;
  const hn::Rebind<uint8_t, decltype(pairs)> narrow;
  const hn::Repartition<int8_t, decltype(pairs)> signs;
  for (size_t i = 0; i < kBlock / 2; i += hn::Lanes(pairs)) {
    const auto wide = hn::PromoteTo(pairs, hn::LoadU(narrow, bytes + i));
    const auto low = hn::And(wide, hn::Set(pairs, 0x000F));
    const auto high = hn::ShiftLeft<8>(hn::ShiftRight<4>(wide));
    const auto nibbles = hn::BitCast(signs, hn::Or(low, high));
    // (n ^ 8) - 8 extends the sign of four bits.
    const auto eight = hn::Set(signs, 8);
    hn::StoreU(hn::Sub(hn::Xor(nibbles, eight), eight), signs, levels + 2 * i);
  }
}

/// One block's levels as bytes, by its scale; a scale of zero makes zeros.
HWY_INLINE void write_block(const float* block, float scale, int bits, uint8_t* bytes) {
  HWY_ALIGN int8_t levels[kBlock];
  if (scale > 0) {
    round_block(block, scale, bits == 4 ? 7.0F : 127.0F, levels);
  } else {
    std::fill(levels, levels + kBlock, int8_t{0});
  }
  if (bits == 4) {
    pack_nibbles(levels, bytes);
  } else {
    std::memcpy(bytes, levels, kBlock);
  }
}

HWY_INLINE void read_block(const uint8_t* bytes, float scale, int bits, float* values) {
  HWY_ALIGN int8_t levels[kBlock];
  if (bits == 4) {
    unpack_nibbles(bytes, levels);
  } else {
    std::memcpy(levels, bytes, kBlock);
  }
  const auto factor = hn::Set(WideTag(), scale);
  for (size_t i = 0; i < kBlock; i += wide_lanes()) {
    const auto wide = hn::PromoteTo(SignedTag(), hn::LoadU(ByteTag(), levels + i));
    store_wide(hn::Mul(hn::ConvertTo(WideTag(), wide), factor), values + i);
  }
}

size_t block_bytes(int bits) { return kBlock * static_cast<size_t>(bits) / 8; }

}  // namespace

uint32_t quantise_range(
    const float* values, size_t num_blocks, int bits, float* scales, uint8_t* payload) {
  const float largest_level = bits == 4 ? 7.0F : 127.0F;
  uint32_t largest = 0;
  for (size_t block = 0; block < num_blocks; ++block, values += kBlock) {
    const uint32_t magnitude = largest_bits(values);
    largest = std::max(largest, magnitude);
    scales[block] = std::bit_cast<float>(magnitude) / largest_level;
    write_block(values, scales[block], bits, payload + block * block_bytes(bits));
  }
  return largest;
}

void dequantise_range(
    const uint8_t* payload, const float* scales, size_t num_blocks, int bits, float* values) {
  for (size_t block = 0; block < num_blocks; ++block, values += kBlock) {
    read_block(payload + block * block_bytes(bits), scales[block], bits, values);
  }
}

uint32_t quantise_line_range(
    const float* values, size_t num_blocks, int bits, uint8_t* codes, uint8_t* payload) {
  static_assert(kLineBlock == 2 * kQuantBlock);
  const float largest_level = bits == 4 ? 7.0F : 127.0F;
  uint32_t largest = 0;
  for (size_t block = 0; block < num_blocks; ++block, values += 2 * kBlock) {
    const uint32_t magnitude = std::max(largest_bits(values), largest_bits(values + kBlock));
    largest = std::max(largest, magnitude);
    codes[block] = line_code_above(std::bit_cast<float>(magnitude) / largest_level);
    const float scale = line_scale(codes[block]);
    write_block(values, scale, bits, payload + 2 * block * block_bytes(bits));
    write_block(values + kBlock, scale, bits, payload + (2 * block + 1) * block_bytes(bits));
  }
  return largest;
}

void dequantise_line_range(
    const uint8_t* payload, const uint8_t* codes, size_t num_blocks, int bits, float* values) {
  for (size_t block = 0; block < 2 * num_blocks; ++block, values += kBlock) {
    const float scale = line_scale(codes[block / 2]);
    read_block(payload + block * block_bytes(bits), scale, bits, values);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pelago::chips::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pelago::chips::cpu {
namespace {
HWY_EXPORT(quantise_range);
HWY_EXPORT(dequantise_range);
HWY_EXPORT(quantise_line_range);
HWY_EXPORT(dequantise_line_range);
}  // namespace

uint32_t quantise_blocks(
    const float* values, size_t num_blocks, int bits, float* scales, uint8_t* payload) {
  return HWY_DYNAMIC_DISPATCH(quantise_range)(values, num_blocks, bits, scales, payload);
}

void dequantise_blocks(
    const uint8_t* payload, const float* scales, size_t num_blocks, int bits, float* values) {
  HWY_DYNAMIC_DISPATCH(dequantise_range)(payload, scales, num_blocks, bits, values);
}

uint32_t quantise_line_blocks(
    const float* values, size_t num_blocks, int bits, uint8_t* codes, uint8_t* payload) {
  return HWY_DYNAMIC_DISPATCH(quantise_line_range)(values, num_blocks, bits, codes, payload);
}

void dequantise_line_blocks(
    const uint8_t* payload, const uint8_t* codes, size_t num_blocks, int bits, float* values) {
  HWY_DYNAMIC_DISPATCH(dequantise_line_range)(payload, codes, num_blocks, bits, values);
}

}  // namespace pelago::chips::cpu
#endif  // HWY_ONCE
