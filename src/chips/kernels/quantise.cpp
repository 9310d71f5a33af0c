// Block quantisation of the deltas that cross a long line. Host memory only. A block of kQuantBlock
// values has one f32 scale: its largest magnitude over the largest level. Value / scale is rounded
// to nearest even, the IEEE default, and only + - x / are used, so that every machine makes the
// same bytes, vector unit or not.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "chips/kernels.h"

namespace pelago::chips {
namespace {

void check_bits(int bits) {
  if (bits != 4 && bits != 8 && bits != 32) {
    fail_usage("cannot quantise to {} bits: choose 4, 8 or 32", bits);
  }
}

size_t payload_bytes(size_t num_values, int bits) {
  return (num_values * static_cast<size_t>(bits) + 7) / 8;
}

/// The block's scale. Throws Failure if a value is not finite.
float block_scale(std::span<const float> block, size_t first_value_idx, float largest_level) {
  float largest = 0;
  for (size_t i = 0; i < block.size(); ++i) {
    if (!std::isfinite(block[i])) {
      fail("value {} is {}: only finite numbers can be quantised", first_value_idx + i, block[i]);
    }
    largest = std::max(largest, std::abs(block[i]));
  }
  return largest / largest_level;
}

}  // namespace

QuantisedVector quantise(std::span<const float> values, int bits) {
  check_bits(bits);
  QuantisedVector result;
  result.bits = bits;
  result.num_values = static_cast<int64_t>(values.size());
  result.payload.resize(payload_bytes(values.size(), bits));
  const float largest_level = bits == 4 ? 7.0F : 127.0F;
  for (size_t begin = 0; begin < values.size(); begin += kQuantBlock) {
    const auto block = values.subspan(begin, std::min<size_t>(kQuantBlock, values.size() - begin));
    const float scale = block_scale(block, begin, largest_level);
    if (bits == 32) continue;
    result.scales.push_back(scale);
    for (size_t i = 0; i < block.size(); ++i) {
      const float quotient = scale > 0 ? block[i] / scale : 0.0F;
      const int level =
          static_cast<int>(std::nearbyint(std::clamp(quotient, -largest_level, largest_level)));
      const size_t value_idx = begin + i;
      if (bits == 8) {
        result.payload[value_idx] = static_cast<uint8_t>(level);
      } else {
        const unsigned nibble = static_cast<unsigned>(level) & 15U;
        uint8_t& byte = result.payload[value_idx / 2];
        byte = static_cast<uint8_t>(byte | (nibble << (value_idx % 2 * 4)));
      }
    }
  }
  if (bits == 32 && !values.empty()) {
    std::memcpy(result.payload.data(), values.data(), values.size_bytes());
  }
  return result;
}

void dequantise(const QuantisedVector& quantised, std::span<float> out) {
  check_bits(quantised.bits);
  const auto num_values = static_cast<size_t>(quantised.num_values);
  PELAGO_ASSERT(out.size() == num_values, "the receiver must have room for what was quantised");
  PELAGO_ASSERT(quantised.payload.size() == payload_bytes(num_values, quantised.bits),
                "the door of the wire checks sizes");
  if (quantised.bits == 32) {
    if (!out.empty()) std::memcpy(out.data(), quantised.payload.data(), out.size_bytes());
    return;
  }
  PELAGO_ASSERT(quantised.scales.size() == (num_values + kQuantBlock - 1) / kQuantBlock,
                "the door of the wire checks sizes");
  for (size_t i = 0; i < num_values; ++i) {
    int level = 0;
    if (quantised.bits == 8) {
      level = static_cast<int8_t>(quantised.payload[i]);
    } else {
      const int nibble = (quantised.payload[i / 2] >> (i % 2 * 4)) & 15;
      level = nibble >= 8 ? nibble - 16 : nibble;
    }
    out[i] = static_cast<float>(level) * quantised.scales[i / kQuantBlock];
  }
}

}  // namespace pelago::chips
