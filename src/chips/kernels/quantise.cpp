// Block quantisation of the deltas that cross a long line. Host memory only. A block of kQuantBlock
// values has one f32 scale: its largest magnitude over the largest level. Value / scale is rounded
// to nearest even, and only + - x / are used, so that every machine makes the same bytes. A last
// block that is not whole is quantised as if zeros stood behind it.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "chips/cpu_kernels/quantise_blocks.h"
#include "chips/kernels.h"

namespace pelago::chips {
namespace {

constexpr auto kBlock = static_cast<size_t>(kQuantBlock);

void check_bits(int bits) {
  if (bits != 4 && bits != 8 && bits != 32) {
    fail_usage("cannot quantise to {} bits: choose 4, 8 or 32", bits);
  }
}

size_t payload_bytes(size_t num_values, int bits) {
  return (num_values * static_cast<size_t>(bits) + 7) / 8;
}

[[noreturn]] void refuse_non_finite(std::span<const float> values) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      fail("value {} is {}: only finite numbers can be quantised", i, values[i]);
    }
  }
  PELAGO_ASSERT(false, "only called when a value is not finite");
  std::abort();
}

}  // namespace

QuantisedVector quantise(std::span<const float> values, int bits) {
  check_bits(bits);
  QuantisedVector result;
  result.bits = bits;
  result.num_values = static_cast<int64_t>(values.size());
  result.payload.resize(payload_bytes(values.size(), bits));
  if (values.empty()) return result;
  if (bits == 32) {
    const bool all_finite =
        std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
    if (!all_finite) refuse_non_finite(values);
    std::memcpy(result.payload.data(), values.data(), values.size_bytes());
    return result;
  }
  const size_t num_whole = values.size() / kBlock;
  result.scales.resize((values.size() + kBlock - 1) / kBlock);
  uint32_t largest = cpu::quantise_blocks(
      values.data(), num_whole, bits, result.scales.data(), result.payload.data());
  if (const auto rest = values.subspan(num_whole * kBlock); !rest.empty()) {
    std::array<float, kBlock> block{};
    std::array<uint8_t, kBlock> bytes{};
    std::copy(rest.begin(), rest.end(), block.begin());
    largest = std::max(
        largest, cpu::quantise_blocks(block.data(), 1, bits, &result.scales.back(), bytes.data()));
    const size_t done_bytes = payload_bytes(num_whole * kBlock, bits);
    std::memcpy(
        result.payload.data() + done_bytes, bytes.data(), result.payload.size() - done_bytes);
  }
  if (largest >= cpu::kInfinityBits) refuse_non_finite(values);
  return result;
}

void dequantise(const QuantisedVector& quantised, std::span<float> out) {
  check_bits(quantised.bits);
  const auto num_values = static_cast<size_t>(quantised.num_values);
  PELAGO_ASSERT(out.size() == num_values, "the receiver must have room for what was quantised");
  PELAGO_ASSERT(quantised.payload.size() == payload_bytes(num_values, quantised.bits),
                "the door of the wire checks sizes");
  if (out.empty()) return;
  if (quantised.bits == 32) {
    std::memcpy(out.data(), quantised.payload.data(), out.size_bytes());
    return;
  }
  PELAGO_ASSERT(quantised.scales.size() == (num_values + kBlock - 1) / kBlock,
                "the door of the wire checks sizes");
  const size_t num_whole = num_values / kBlock;
  cpu::dequantise_blocks(
      quantised.payload.data(), quantised.scales.data(), num_whole, quantised.bits, out.data());
  if (const auto rest = out.subspan(num_whole * kBlock); !rest.empty()) {
    std::array<float, kBlock> block{};
    std::array<uint8_t, kBlock> bytes{};
    const size_t done_bytes = payload_bytes(num_whole * kBlock, quantised.bits);
    std::memcpy(
        bytes.data(), quantised.payload.data() + done_bytes, quantised.payload.size() - done_bytes);
    cpu::dequantise_blocks(bytes.data(), &quantised.scales.back(), 1, quantised.bits, block.data());
    std::copy_n(block.begin(), rest.size(), rest.begin());
  }
}

void quantise_for_line(std::span<const float> values, int bits, std::span<uint8_t> out) {
  PELAGO_ASSERT(bits == 4 || bits == 8, "the config knows the widths there are");
  PELAGO_ASSERT(out.size() == line_bytes(values.size(), bits), "the receiver has room");
  constexpr auto kWide = static_cast<size_t>(kLineBlock);
  const size_t num_whole = values.size() / kWide;
  uint8_t* codes = out.data();
  uint8_t* payload = codes + (values.size() + kWide - 1) / kWide;
  uint32_t largest = cpu::quantise_line_blocks(values.data(), num_whole, bits, codes, payload);
  if (const auto rest = values.subspan(num_whole * kWide); !rest.empty()) {
    std::array<float, kWide> block{};
    std::array<uint8_t, kWide> bytes{};
    std::copy(rest.begin(), rest.end(), block.begin());
    largest = std::max(
        largest, cpu::quantise_line_blocks(block.data(), 1, bits, codes + num_whole, bytes.data()));
    std::memcpy(payload + payload_bytes(num_whole * kWide, bits),
                bytes.data(),
                payload_bytes(rest.size(), bits));
  }
  if (largest >= cpu::kInfinityBits) refuse_non_finite(values);
}

void dequantise_from_line(std::span<const uint8_t> bytes, int bits, std::span<float> out) {
  PELAGO_ASSERT(bits == 4 || bits == 8, "the config knows the widths there are");
  PELAGO_ASSERT(bytes.size() == line_bytes(out.size(), bits), "the door of the wire checks sizes");
  constexpr auto kWide = static_cast<size_t>(kLineBlock);
  const size_t num_whole = out.size() / kWide;
  const uint8_t* codes = bytes.data();
  const uint8_t* payload = codes + (out.size() + kWide - 1) / kWide;
  cpu::dequantise_line_blocks(payload, codes, num_whole, bits, out.data());
  if (const auto rest = out.subspan(num_whole * kWide); !rest.empty()) {
    std::array<float, kWide> block{};
    std::array<uint8_t, kWide> last{};
    std::memcpy(last.data(),
                payload + payload_bytes(num_whole * kWide, bits),
                payload_bytes(rest.size(), bits));
    cpu::dequantise_line_blocks(last.data(), codes + num_whole, 1, bits, block.data());
    std::copy_n(block.begin(), rest.size(), rest.begin());
  }
}

}  // namespace pelago::chips
