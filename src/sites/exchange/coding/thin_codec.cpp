#include "sites/exchange/coding/thin_codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#include "chips/kernels.h"
#include "sites/exchange/coding/entropy_coder.h"

namespace pelago::sites {

namespace {

constexpr auto kChunk = static_cast<size_t>(kThinChunk);
constexpr uint32_t kGapMore = 255;

size_t num_chunks(size_t num_values) { return (num_values + kChunk - 1) / kChunk; }

/// Values that are sent of so many.
size_t num_sent(size_t num_values) {
  const size_t rest = num_values % kChunk;
  return num_values / kChunk * thin_count(kChunk) + (rest == 0 ? 0 : thin_count(rest));
}

size_t num_gaps_max(size_t num_values) { return num_sent(num_values) + num_values / kGapMore; }
size_t num_mark_bytes(size_t num_values) { return (num_sent(num_values) + 3) / 4; }

/// What a slice is made of before it is coded.
struct Parts {
  std::vector<uint8_t> scales;  // two a chunk
  std::vector<uint8_t> gaps;
  std::vector<uint8_t> marks;  // two bits a value sent
  size_t num_marks = 0;

  void put_gap(size_t gap) {
    for (; gap >= kGapMore; gap -= kGapMore) gaps.push_back(kGapMore);
    gaps.push_back(static_cast<uint8_t>(gap));
  }
  void put_mark(uint32_t mark) {
    if (num_marks % 4 == 0) marks.push_back(0);
    marks.back() = static_cast<uint8_t>(marks.back() | mark << (2 * (num_marks % 4)));
    ++num_marks;
  }
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
                  Parts& parts,
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

  std::fill(decoded.begin(), decoded.end(), 0.0F);
  parts.scales.push_back(scales.low);
  parts.scales.push_back(scales.high);
  size_t next = 0;  // the least position that may come
  for (size_t i = 0; i < count; ++i) {
    const size_t position = position_of(keys[i]);
    const bool is_negative = std::signbit(values[position]);
    const bool is_high = keys[i] >= scales.high_min;
    parts.put_gap(position - next);
    parts.put_mark((is_negative ? 1U : 0U) | (is_high ? 2U : 0U));
    next = position + 1;
    const float magnitude = chips::line_scale(is_high ? scales.high : scales.low);
    decoded[position] = is_negative ? -magnitude : magnitude;
  }
}

/// Takes gaps and marks from where the chunk before has left off. False if a position lies outside.
bool decode_chunk(
    const Parts& parts, size_t chunk_idx, size_t& gap_at, size_t& mark_at, std::span<float> out) {
  std::fill(out.begin(), out.end(), 0.0F);
  const float scales[2] = {chips::line_scale(parts.scales[2 * chunk_idx]),
                           chips::line_scale(parts.scales[2 * chunk_idx + 1])};
  size_t position = 0;
  for (size_t left = thin_count(out.size()); left > 0;) {
    if (gap_at == parts.gaps.size()) return false;
    const uint8_t gap = parts.gaps[gap_at++];
    position += gap;
    if (gap == kGapMore) continue;
    if (position >= out.size()) return false;
    const uint32_t mark = static_cast<uint32_t>(parts.marks[mark_at / 4]) >> (2 * (mark_at % 4));
    const float magnitude = scales[(mark >> 1) & 1U];
    out[position++] = (mark & 1U) != 0 ? -magnitude : magnitude;
    ++mark_at;
    --left;
  }
  return true;
}

Error corrupt(const char* what) {
  return {ErrorCode::kCorrupt, fmt::format("thin slice {}", what)};
}

}  // namespace

size_t thin_bytes_max(size_t num_values) {
  return sizeof(uint32_t) + coded_bytes_max(2 * num_chunks(num_values)) +
         coded_bytes_max(num_gaps_max(num_values)) + coded_bytes_max(num_mark_bytes(num_values));
}

std::string encode_thin(std::span<const float> values, std::span<float> decoded) {
  const auto keys = std::make_unique<Keys>();
  Parts parts;
  for (size_t begin = 0; begin < values.size(); begin += kChunk) {
    const size_t num_values = std::min(kChunk, values.size() - begin);
    encode_chunk(
        values.subspan(begin, num_values), *keys, parts, decoded.subspan(begin, num_values));
  }
  std::string payload;
  const auto num_gaps = static_cast<uint32_t>(parts.gaps.size());
  for (uint32_t i = 0; i < 4; ++i) payload.push_back(static_cast<char>(num_gaps >> (8 * i)));
  for (const auto* part : {&parts.scales, &parts.gaps, &parts.marks}) append_coded(*part, payload);
  return payload;
}

Status decode_thin(std::span<const uint8_t> bytes, std::span<float> out) {
  size_t num_gaps = 0;
  if (bytes.size() < sizeof(uint32_t)) return corrupt("without a head");
  for (size_t i = 0; i < 4; ++i) num_gaps |= size_t{bytes[i]} << (8 * i);
  bytes = bytes.subspan(sizeof(uint32_t));
  if (num_gaps < num_sent(out.size()) || num_gaps > num_gaps_max(out.size())) {
    return corrupt("with a number of gaps that cannot be");
  }
  Parts parts{.scales = std::vector<uint8_t>(2 * num_chunks(out.size())),
              .gaps = std::vector<uint8_t>(num_gaps),
              .marks = std::vector<uint8_t>(num_mark_bytes(out.size()))};
  for (auto* part : {&parts.scales, &parts.gaps, &parts.marks}) {
    Status taken = take_coded(bytes, *part);
    if (!taken) return taken;
  }
  if (!bytes.empty()) return corrupt("longer than it says");
  size_t gap_at = 0, mark_at = 0;
  for (size_t begin = 0; begin < out.size(); begin += kChunk) {
    const std::span<float> chunk = out.subspan(begin, std::min(kChunk, out.size() - begin));
    if (!decode_chunk(parts, begin / kChunk, gap_at, mark_at, chunk)) {
      return corrupt("with a position outside");
    }
  }
  return gap_at == parts.gaps.size() ? ok() : Status(corrupt("with gaps left over"));
}

}  // namespace pelago::sites
