#include "chips/packed/packed_matrix.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace pelago::chips::packed {

namespace {

constexpr size_t kLargePage = size_t{2} << 20;
constexpr size_t kBlockWords = 64;  // of 16 rows: 4 KB of the panel, in the first cache
constexpr size_t kGroupMax = 256;   // values

size_t divide_up(size_t value, size_t by) { return (value + by - 1) / by; }

float bf16_to_float(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

/// Rounded to nearest even; weights are finite.
uint16_t float_to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

/// Values [begin, begin + out.size()) of a row of numbers.
void read_floats(const StoredRows& rows, size_t row_begin, std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    const size_t at = row_begin + i;
    switch (rows.dtype) {
      case StoredRows::Dtype::kF32:
        out[i] = static_cast<const float*>(rows.data)[at];
        break;
      case StoredRows::Dtype::kBf16:
        out[i] = bf16_to_float(static_cast<const uint16_t*>(rows.data)[at]);
        break;
      default:
        out[i] = f16_to_float(static_cast<const uint16_t*>(rows.data)[at]);
    }
  }
}

/// Eight stored nibbles, first one lowest, to where a panel wants them: values 0..3 in the low
/// nibbles of the four bytes, 4..7 in the high ones.
uint32_t spread_nibbles(uint32_t stored) {
  const auto spread = [](uint32_t half) {
    half = (half | half << 8) & 0x00FF00FFU;
    return (half | half << 4) & 0x0F0F0F0FU;
  };
  return spread(stored & 0xFFFF) | spread(stored >> 16) << 4;
}

/// Levels a byte each to bytes of stored nibbles.
uint32_t pack_nibbles(const uint8_t* levels) {
  uint32_t stored = 0;
  for (uint32_t i = 0; i < 8; ++i) stored |= static_cast<uint32_t>(levels[i] & 15) << (4 * i);
  return stored;
}

/// Memory of this process at a large page's border, zeroed, in whole large pages.
std::byte* map_aligned(size_t num_bytes) {
  const size_t mapped = divide_up(num_bytes, kLargePage) * kLargePage;
  // Mapped with a page to spare, so that a large page's border lies within; what is over goes back.
  void* raw = ::mmap(nullptr,
                     mapped + kLargePage,
                     PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                     -1,
                     0);
  if (raw == MAP_FAILED) {
    fail(
        "memory: the system refuses {} MiB for the model: {}; take fewer pages or narrower weights",
        num_bytes >> 20,
        std::strerror(errno));
  }
  const auto begin = reinterpret_cast<uintptr_t>(raw);
  const uintptr_t aligned = divide_up(begin, kLargePage) * kLargePage;
  if (aligned > begin) ::munmap(raw, aligned - begin);
  if (aligned - begin < kLargePage) {
    ::munmap(reinterpret_cast<void*>(aligned + mapped), kLargePage - (aligned - begin));
  }
  auto* data = reinterpret_cast<std::byte*>(aligned);
  ::madvise(data, mapped, MADV_HUGEPAGE);  // a system without them refuses, which is no loss
  return data;
}

}  // namespace

LargeMemory::LargeMemory(size_t num_bytes) {
  if (num_bytes == 0) return;
  num_bytes_ = num_bytes;
  data_ = map_aligned(num_bytes);
}

LargeMemory::LargeMemory(const FilePiece& piece, size_t num_bytes) {
  if (num_bytes == 0) return;
  num_bytes_ = num_bytes;
  data_ = map_aligned(num_bytes);  // a place for it
  const size_t mapped = divide_up(num_bytes, kLargePage) * kLargePage;
  const int access = piece.is_read_only ? PROT_READ : PROT_READ | PROT_WRITE;
  if (::mmap(data_,
             mapped,
             access,
             MAP_SHARED | MAP_FIXED,
             piece.file,
             static_cast<off_t>(piece.begin)) == MAP_FAILED) {
    fail("memory: the system refuses to share {} MiB of weights: {}",
         num_bytes >> 20,
         std::strerror(errno));
  }
  ::madvise(data_, mapped, MADV_HUGEPAGE);
}

LargeMemory::LargeMemory(LargeMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), num_bytes_(std::exchange(other.num_bytes_, 0)) {}

LargeMemory& LargeMemory::operator=(LargeMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}

LargeMemory::~LargeMemory() {
  if (data_ != nullptr) ::munmap(data_, divide_up(num_bytes_, kLargePage) * kLargePage);
}

float f16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t magnitude = bits & 0x7FFF;
  if (magnitude >= 0x7C00) {  // infinity and NaN keep their bits
    return std::bit_cast<float>(sign | 0x7F800000U | (magnitude & 0x3FF) << 13);
  }
  // The exponent is 112 too low; the product is exact, denormals included.
  const float value = std::bit_cast<float>(magnitude << 13) * 0x1.0p112F;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

uint16_t float_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7E00);
  if (magnitude >= 65520.0F) return static_cast<uint16_t>(sign | 0x7C00);
  if (magnitude < 0x1.0p-14F) {  // denormal: a multiple of 2^-24
    return static_cast<uint16_t>(sign |
                                 static_cast<uint16_t>(std::nearbyint(magnitude * 0x1.0p24F)));
  }
  const uint32_t exact = bits & 0x7FFFFFFF;
  const uint32_t rounded = exact + 0xFFF + ((exact >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded - (uint32_t{112} << 23)) >> 13));
}

void round_to_levels(std::span<const float> row,
                     Format format,
                     int64_t group_size,
                     std::span<uint8_t> levels,
                     std::span<uint16_t> scales) {
  const float top = static_cast<float>(level_offset(format) - 1);
  const auto group_values = static_cast<size_t>(group_size);
  for (size_t begin = 0; begin < row.size(); begin += group_values) {
    const std::span<const float> group = row.subspan(begin, group_values);
    float largest = 0;
    for (const float value : group) largest = std::max(largest, std::fabs(value));
    const uint16_t scale_bits = float_to_f16(largest / top);
    const float scale = f16_to_float(scale_bits);
    const float inverse = scale > 0 ? 1 / scale : 0;
    for (size_t i = 0; i < group.size(); ++i) {
      const float level = std::clamp(std::nearbyint(group[i] * inverse), -top, top);
      levels[begin + i] = static_cast<uint8_t>(static_cast<int>(level) + level_offset(format));
    }
    scales[begin / group_values] = scale_bits;
  }
}

PackedMatrix::PackedMatrix(Format format,
                           int64_t num_outputs,
                           int64_t num_inputs,
                           int64_t group_size)
    : PackedMatrix(format, num_outputs, num_inputs, group_size, [](size_t num_bytes) {
        return LargeMemory(num_bytes);
      }) {}

PackedMatrix::PackedMatrix(Format format,
                           int64_t num_outputs,
                           int64_t num_inputs,
                           int64_t group_size,
                           const TakeMemory& take)
    : format_(format),
      num_outputs_(num_outputs),
      num_inputs_(num_inputs),
      group_size_(is_quantised(format) ? group_size : 0) {
  const auto inputs = static_cast<size_t>(num_inputs);
  num_panels_ = divide_up(static_cast<size_t>(num_outputs), kPanel);
  num_words_ = divide_up(inputs, word_values(format));
  if (is_quantised(format)) {
    PELAGO_ASSERT(group_size % 32 == 0 && num_inputs % group_size == 0 &&
                      static_cast<size_t>(group_size) <= kGroupMax,
                  "whoever opens the model has checked the groups");
    group_words_ = static_cast<size_t>(group_size) / word_values(format);
    num_groups_ = num_words_ / group_words_;
    scales_ = take(num_panels_ * num_groups_ * kPanel * sizeof(uint16_t));
  }
  memory_ = take(num_panels_ * num_words_ * panel_word_bytes(format));
}

void PackedMatrix::put_words(
    const StoredRows& rows, int64_t row_idx, int64_t output_idx, size_t begin, size_t end) {
  const auto row = static_cast<size_t>(row_idx);
  const size_t panel = static_cast<size_t>(output_idx) / kPanel;
  const size_t lane = static_cast<size_t>(output_idx) % kPanel;
  const auto inputs = static_cast<size_t>(num_inputs_);
  const size_t bits_a_value = format_ == Format::kInt4 ? 4 : 8;
  std::array<uint32_t, kBlockWords> words{};  // of the panel: of int4 half as many
  size_t num_stored = end - begin;
  if (rows.dtype == StoredRows::Dtype::kLevels) {
    num_stored = (end - begin) * 4 * bits_a_value / 32;
    std::memcpy(
        words.data(),
        static_cast<const std::byte*>(rows.data) + (row * inputs + begin * 4) * bits_a_value / 8,
        num_stored * 4);
  } else if (format_ == Format::kBf16 && rows.dtype == StoredRows::Dtype::kBf16 &&
             inputs % 2 == 0) {
    std::memcpy(words.data(),
                static_cast<const uint32_t*>(rows.data) + (row * inputs) / 2 + begin,
                num_stored * 4);
  } else {
    std::array<float, 4 * kBlockWords> values{};
    const size_t first = begin * word_values(format_);
    const size_t num_values = std::min(end * word_values(format_), inputs) - first;
    read_floats(rows, row * inputs + first, std::span(values).first(num_values));
    if (format_ == Format::kF32) {
      std::memcpy(words.data(), values.data(), num_stored * 4);
    } else if (format_ == Format::kBf16) {
      for (size_t i = 0; i < num_stored; ++i) {
        words[i] = float_to_bf16(values[2 * i]) |
                   static_cast<uint32_t>(float_to_bf16(values[2 * i + 1])) << 16;
      }
    } else {
      std::array<uint8_t, 4 * kBlockWords> levels{};
      std::array<uint16_t, kBlockWords> group_scales{};
      round_to_levels(
          std::span(values).first(num_values), format_, group_size_, levels, group_scales);
      auto* scales = reinterpret_cast<uint16_t*>(scales_.data());
      for (size_t group = 0; group < (end - begin) / group_words_; ++group) {
        scales[(panel * num_groups_ + begin / group_words_ + group) * kPanel + lane] =
            group_scales[group];
      }
      num_stored = num_values * bits_a_value / 32;
      if (format_ == Format::kInt8) {
        std::memcpy(words.data(), levels.data(), num_values);
      } else {
        for (size_t i = 0; i < num_stored; ++i) words[i] = pack_nibbles(levels.data() + 8 * i);
      }
    }
  }
  uint32_t* to = reinterpret_cast<uint32_t*>(memory_.data() + (panel * num_words_ + begin) *
                                                                  panel_word_bytes(format_)) +
                 lane;
  for (size_t i = 0; i < num_stored; ++i) {
    to[i * kPanel] = format_ == Format::kInt4 ? spread_nibbles(words[i]) : words[i];
  }
}

void PackedMatrix::fill(const StoredRows& rows,
                        int64_t first_output,
                        int64_t panel_stride,
                        CoreTeam& team) {
  PELAGO_ASSERT(rows.dtype != StoredRows::Dtype::kLevels || is_quantised(format_),
                "levels go where levels are");
  const size_t block_words =
      is_quantised(format_) ? kBlockWords / group_words_ * group_words_ : kBlockWords;
  const auto num_rows = static_cast<size_t>(rows.num_rows);
  const auto stride = static_cast<size_t>(panel_stride);
  const auto output_of = [&](size_t row) {
    return static_cast<size_t>(first_output) + row / kPanel * kPanel * stride + row % kPanel;
  };
  team.run([&](CoreTeam::Member& member) {
    member.share(divide_up(num_rows, kPanel), 1, [&](size_t begin, size_t end) {
      for (size_t word = 0; word < num_words_ * (end - begin); word += 0) {
        const size_t block = word / num_words_ + begin;
        const size_t from = word % num_words_;
        const size_t to = std::min(num_words_, from + block_words);
        for (size_t row = block * kPanel; row < std::min(num_rows, (block + 1) * kPanel); ++row) {
          put_words(
              rows, static_cast<int64_t>(row), static_cast<int64_t>(output_of(row)), from, to);
        }
        word += to - from;
      }
      if (rows.dtype != StoredRows::Dtype::kLevels) return;
      auto* scales = reinterpret_cast<uint16_t*>(scales_.data());
      for (size_t row = begin * kPanel; row < std::min(num_rows, end * kPanel); ++row) {
        const size_t output = output_of(row);
        for (size_t group = 0; group < num_groups_; ++group) {
          scales[(output / kPanel * num_groups_ + group) * kPanel + output % kPanel] =
              rows.scales[row * num_groups_ + group];
        }
      }
    });
  });
}

PanelJob PackedMatrix::job(size_t panel_idx) const {
  PanelJob job;
  job.panel_bytes = num_words_ * panel_word_bytes(format_);
  job.weights = memory_.data() + panel_idx * job.panel_bytes;
  job.panel_scales = num_groups_ * kPanel;
  job.scales = reinterpret_cast<const uint16_t*>(scales_.data()) + panel_idx * job.panel_scales;
  job.num_words = num_words_;
  job.group_words = group_words_;
  return job;
}

void PackedMatrix::read_row(int64_t output_idx, std::span<float> out) const {
  const size_t lane = static_cast<size_t>(output_idx) % kPanel;
  const PanelJob panel = job(static_cast<size_t>(output_idx) / kPanel);
  const auto* words = reinterpret_cast<const uint32_t*>(panel.weights) + lane;
  for (size_t i = 0; i < out.size(); ++i) {
    if (format_ == Format::kF32) {
      out[i] = std::bit_cast<float>(words[i * kPanel]);
    } else if (format_ == Format::kBf16) {
      out[i] = bf16_to_float(static_cast<uint16_t>(words[i / 2 * kPanel] >> (i % 2 * 16)));
    } else {
      const bool is_8_bits = format_ == Format::kInt8;
      const uint32_t word = words[(is_8_bits ? i / 4 : i / 8) * kPanel];
      const uint32_t shift = static_cast<uint32_t>(i % 4 * 8 + (is_8_bits ? 0 : i / 4 % 2 * 4));
      const auto level =
          static_cast<int32_t>((word >> shift) & (is_8_bits ? 255U : 15U)) - level_offset(format_);
      const size_t group = i / static_cast<size_t>(group_size_);
      out[i] = static_cast<float>(level) * f16_to_float(panel.scales[group * kPanel + lane]);
    }
  }
}

}  // namespace pelago::chips::packed
