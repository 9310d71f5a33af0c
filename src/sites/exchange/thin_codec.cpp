#include "sites/exchange/thin_codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <memory>

#include "chips/kernels.h"

namespace pelago::sites {

namespace {

constexpr auto kChunk = static_cast<size_t>(kThinChunk);
constexpr size_t kGroup = 32;  // values whose positions share their upper bits
constexpr size_t kEntryBits = 7;

size_t num_groups(size_t num_values) { return (num_values + kGroup - 1) / kGroup; }

size_t chunk_bytes(size_t num_values) {
  const size_t count = thin_count(num_values);
  return 2 + (count + num_groups(num_values) + count * kEntryBits + 7) / 8;
}

/// Bits of a range of bytes, from the low end of the first one.
class BitWriter {
 public:
  explicit BitWriter(std::span<uint8_t> bytes) : bytes_(bytes) {}  // zeros
  void put(uint32_t value, size_t num_bits) {
    for (size_t i = 0; i < num_bits; ++i, ++at_) {
      bytes_[at_ / 8] = static_cast<uint8_t>(bytes_[at_ / 8] | ((value >> i) & 1U) << (at_ % 8));
    }
  }

 private:
  std::span<uint8_t> bytes_;
  size_t at_ = 0;
};

class BitReader {
 public:
  BitReader(std::span<const uint8_t> bytes, size_t at) : bytes_(bytes), at_(at) {}
  uint32_t take(size_t num_bits) {
    uint32_t value = 0;
    for (size_t i = 0; i < num_bits; ++i, ++at_) {
      value |= ((static_cast<uint32_t>(bytes_[at_ / 8]) >> (at_ % 8)) & 1U) << i;
    }
    return value;
  }

 private:
  std::span<const uint8_t> bytes_;
  size_t at_;
};

/// Keys order values by magnitude, and equal ones by position, the earlier one above.
using Keys = std::array<uint64_t, kChunk>;

uint32_t magnitude_bits(float value) { return std::bit_cast<uint32_t>(value) & 0x7FFFFFFFU; }
size_t position_of(uint64_t key) { return kChunk - 1 - static_cast<size_t>(key % kChunk); }
double magnitude_of(uint64_t key) {
  return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(key / kChunk)));
}

/// The scale nearest to a magnitude.
uint8_t nearest_code(double magnitude) {
  const auto value = static_cast<float>(std::min(magnitude, 7.0));
  const uint32_t upper = (std::bit_cast<uint32_t>(value) + 0x80000U) >> 20;
  if (upper <= chips::kLineScaleBase) return 0;
  return static_cast<uint8_t>(std::min(upper - chips::kLineScaleBase, 255U));
}

struct TwoScales {
  uint8_t low = 0, high = 0;
  uint64_t high_min = 0;  // keys from here on take the high scale
};

/// The split of falling keys into two groups whose means leave the least squared error.
TwoScales choose_scales(std::span<const uint64_t> falling) {
  double total = 0;
  for (const uint64_t key : falling) total += magnitude_of(key);
  double head = 0, best_gain = -1, best_head = 0;
  size_t best_count = 1;
  for (size_t count = 1; count <= falling.size(); ++count) {
    head += magnitude_of(falling[count - 1]);
    const auto num_head = static_cast<double>(count);
    const double num_tail = static_cast<double>(falling.size()) - num_head;
    const double tail = total - head;
    const double gain = head * head / num_head + (num_tail > 0 ? tail * tail / num_tail : 0);
    if (gain <= best_gain) continue;
    best_gain = gain;
    best_head = head;
    best_count = count;
  }
  const auto num_tail = static_cast<double>(falling.size() - best_count);
  return {.low = num_tail > 0 ? nearest_code((total - best_head) / num_tail) : uint8_t{0},
          .high = nearest_code(best_head / static_cast<double>(best_count)),
          .high_min = falling[best_count - 1]};
}

void encode_chunk(std::span<const float> values,
                  Keys& keys,
                  std::span<uint8_t> bytes,
                  std::span<float> decoded) {
  for (size_t i = 0; i < values.size(); ++i) {
    keys[i] = uint64_t{magnitude_bits(values[i])} * kChunk + (kChunk - 1 - i);
  }
  const size_t count = thin_count(values.size());
  const auto end = keys.begin() + static_cast<std::ptrdiff_t>(values.size());
  const auto chosen_end = keys.begin() + static_cast<std::ptrdiff_t>(count);
  if (chosen_end != end) std::nth_element(keys.begin(), chosen_end, end, std::greater<>());
  std::sort(keys.begin(), chosen_end, std::greater<>());
  const TwoScales scales = choose_scales(std::span(keys).first(count));
  std::sort(keys.begin(), chosen_end, [](uint64_t a, uint64_t b) {
    return position_of(a) < position_of(b);
  });

  std::fill(bytes.begin(), bytes.end(), uint8_t{0});
  std::fill(decoded.begin(), decoded.end(), 0.0F);
  bytes[0] = scales.low;
  bytes[1] = scales.high;
  BitWriter writer(bytes.subspan(2));
  size_t group = 0;
  for (size_t i = 0; i < count; ++i) {
    for (; group < position_of(keys[i]) / kGroup; ++group) writer.put(0, 1);
    writer.put(1, 1);
  }
  for (; group < num_groups(values.size()); ++group) writer.put(0, 1);
  for (size_t i = 0; i < count; ++i) {
    const size_t position = position_of(keys[i]);
    const bool is_negative = std::signbit(values[position]);
    const bool is_high = keys[i] >= scales.high_min;
    writer.put(
        static_cast<uint32_t>(position % kGroup) | (is_negative ? 32U : 0U) | (is_high ? 64U : 0U),
        kEntryBits);
    const float magnitude = chips::line_scale(is_high ? scales.high : scales.low);
    decoded[position] = is_negative ? -magnitude : magnitude;
  }
}

bool decode_chunk(std::span<const uint8_t> bytes, std::span<float> out) {
  const size_t count = thin_count(out.size());
  std::fill(out.begin(), out.end(), 0.0F);
  const float scales[2] = {chips::line_scale(bytes[0]), chips::line_scale(bytes[1])};
  BitReader unary(bytes.subspan(2), 0);
  BitReader entries(bytes.subspan(2), count + num_groups(out.size()));
  size_t group = 0, num_read = 0, next = 0;  // next: the least position that may come
  while (group < num_groups(out.size()) || num_read < count) {
    if (unary.take(1) == 0) {
      if (++group > num_groups(out.size())) return false;
      continue;
    }
    if (++num_read > count) return false;
    const uint32_t entry = entries.take(kEntryBits);
    const size_t position = group * kGroup + entry % kGroup;
    if (position < next || position >= out.size()) return false;
    next = position + 1;
    const float magnitude = scales[entry >> 6];
    out[position] = (entry & 32U) != 0 ? -magnitude : magnitude;
  }
  return true;
}

}  // namespace

size_t thin_bytes(size_t num_values) {
  const size_t rest = num_values % kChunk;
  return num_values / kChunk * chunk_bytes(kChunk) + (rest == 0 ? 0 : chunk_bytes(rest));
}

void encode_thin(std::span<const float> values,
                 std::span<uint8_t> bytes,
                 std::span<float> decoded) {
  const auto keys = std::make_unique<Keys>();
  for (size_t begin = 0, at = 0; begin < values.size(); begin += kChunk) {
    const size_t num_values = std::min(kChunk, values.size() - begin);
    const size_t num_bytes = chunk_bytes(num_values);
    encode_chunk(values.subspan(begin, num_values),
                 *keys,
                 bytes.subspan(at, num_bytes),
                 decoded.subspan(begin, num_values));
    at += num_bytes;
  }
}

Status decode_thin(std::span<const uint8_t> bytes, std::span<float> out) {
  for (size_t begin = 0, at = 0; begin < out.size(); begin += kChunk) {
    const size_t num_values = std::min(kChunk, out.size() - begin);
    const size_t num_bytes = chunk_bytes(num_values);
    if (!decode_chunk(bytes.subspan(at, num_bytes), out.subspan(begin, num_values))) {
      return Error{ErrorCode::kCorrupt,
                   fmt::format("thin slice whose positions do not rise, at value {}", begin)};
    }
    at += num_bytes;
  }
  return ok();
}

}  // namespace pelago::sites
