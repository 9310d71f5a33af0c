// The products for processors with AVX-512 BF16 and VNNI (VDPBF16PS, VPDPBUSD), which Highway 1.0
// does not offer. Accumulators are arrays whose loops are unrolled whole, so that they live in
// registers: 12 rows by 2 panels in f32 and bf16, 6 by 2 where each also needs an integer sum.
#include "chips/packed/panels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                        \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni,f16c"))), \
    apply_to = function)
#define PELAGO_UNROLL _Pragma("unroll")
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni,f16c")
#define PELAGO_UNROLL _Pragma("GCC unroll 16")
#endif

namespace pelago::chips::packed {
namespace {

inline __m512i broadcast(const uint32_t* word) {
  return _mm512_set1_epi32(static_cast<int>(*word));
}

/// sums += four products a lane, of unsigned and signed bytes. By hand, since gcc 12 copies every
/// accumulator of the intrinsic once a use: 590 GOP/s instead of 760 a core.
inline void add_product(__m512i& sums, __m512i unsigned_bytes, __m512i signed_bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(unsigned_bytes), "v"(signed_bytes));
}

template <int kRows, int kPanels>
inline void store(const PanelJob& job, bool adds, const __m512 (&sums)[kRows][kPanels]) {
  PELAGO_UNROLL
  for (int row = 0; row < kRows; ++row) {
    float* c = job.c + static_cast<size_t>(row) * job.c_stride;
    PELAGO_UNROLL
    for (int panel = 0; panel < kPanels; ++panel) {
      float* to = c + panel * 16;
      const __m512 sum = sums[row][panel];
      _mm512_storeu_ps(to, adds ? _mm512_add_ps(_mm512_loadu_ps(to), sum) : sum);
    }
  }
}

/// f32 and bf16: words are summed as they come.
template <bool kPairs, int kRows, int kPanels>
void multiply_floats(const PanelJob& job) {
  __m512 sums[kRows][kPanels];
  PELAGO_UNROLL
  for (int row = 0; row < kRows; ++row) {
    PELAGO_UNROLL
    for (int panel = 0; panel < kPanels; ++panel) sums[row][panel] = _mm512_setzero_ps();
  }
  const uint32_t* x = job.x;
  const std::byte* weights = job.weights;
  const std::byte* ahead = job.ahead != nullptr ? job.ahead : weights;
  for (size_t word = 0; word < job.num_words; ++word, x += kRows, weights += 64, ahead += 64) {
    _mm_prefetch(ahead, _MM_HINT_T1);
    __m512i columns[kPanels];
    PELAGO_UNROLL
    for (int panel = 0; panel < kPanels; ++panel) {
      columns[panel] = _mm512_loadu_si512(weights + static_cast<size_t>(panel) * job.panel_bytes);
    }
    PELAGO_UNROLL
    for (int row = 0; row < kRows; ++row) {
      const __m512i left = broadcast(x + row);
      PELAGO_UNROLL
      for (int panel = 0; panel < kPanels; ++panel) {
        if constexpr (kPairs) {
          sums[row][panel] = _mm512_dpbf16_ps(sums[row][panel],
                                              reinterpret_cast<__m512bh>(left),
                                              reinterpret_cast<__m512bh>(columns[panel]));
        } else {
          sums[row][panel] = _mm512_fmadd_ps(
              _mm512_castsi512_ps(left), _mm512_castsi512_ps(columns[panel]), sums[row][panel]);
        }
      }
    }
  }
  store<kRows, kPanels>(job, job.adds, sums);
}

/// sums += levels * weights' scales * activations' scales, of one group.
template <int kRows, int kPanels>
inline void add_scaled(const PanelJob& job,
                       size_t group,
                       const __m512i (&levels)[kRows][kPanels],
                       __m512 (&sums)[kRows][kPanels]) {
  const float* x_scales = job.x_scales + group * kRows;
  PELAGO_UNROLL
  for (int panel = 0; panel < kPanels; ++panel) {
    const auto* halves = reinterpret_cast<const __m256i*>(
        job.scales + static_cast<size_t>(panel) * job.panel_scales + group * kPanel);
    // Masked, since gcc 12 warns of the undefined lanes in the plain forms.
    const __m512 scale = _mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256(halves));
    PELAGO_UNROLL
    for (int row = 0; row < kRows; ++row) {
      sums[row][panel] = _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(0xFFFF, levels[row][panel]),
                                         _mm512_mul_ps(scale, _mm512_set1_ps(x_scales[row])),
                                         sums[row][panel]);
    }
  }
}

/// Where the weights lie that are wanted one group later. One row waits for memory alone: the
/// processor finds each panel's stream by itself, but not where the next panels begin.
template <int kRows, int kPanels>
inline const std::byte* next_of(const PanelJob& job, size_t group, size_t group_bytes) {
  if (kRows > 1) return (job.ahead != nullptr ? job.ahead : job.weights) + group * group_bytes;
  const bool is_last = (group + 1) * job.group_words == job.num_words;
  return job.weights + (group + 1) * group_bytes +
         (is_last ? static_cast<size_t>(kPanels - 1) * job.panel_bytes : 0);
}

/// 64 bytes of each panel.
template <int kPanels>
inline void fetch(const std::byte* from, size_t panel_bytes) {
  PELAGO_UNROLL
  for (int panel = 0; panel < kPanels; ++panel) {
    _mm_prefetch(from + static_cast<size_t>(panel) * panel_bytes, _MM_HINT_T1);
  }
}

/// 8 and 4 bits: a group's products are summed as integers, then scaled. A sum that adds goes on
/// where the one before it ended, so that how the words are cut does not change its bits.
template <bool kNibbles, int kRows, int kPanels>
void multiply_levels(const PanelJob& job) {
  __m512 sums[kRows][kPanels];
  PELAGO_UNROLL
  for (int row = 0; row < kRows; ++row) {
    PELAGO_UNROLL
    for (int panel = 0; panel < kPanels; ++panel) {
      const float* before = job.c + static_cast<size_t>(row) * job.c_stride + panel * 16;
      sums[row][panel] = job.adds ? _mm512_loadu_ps(before) : _mm512_setzero_ps();
    }
  }
  const __m512i low = _mm512_set1_epi8(15);
  const uint32_t* x = job.x;
  const std::byte* weights = job.weights;
  const size_t num_groups = job.num_words / job.group_words;
  for (size_t group = 0; group < num_groups; ++group) {
    const size_t side = group * kRows;
    __m512i levels[kRows][kPanels];
    PELAGO_UNROLL
    for (int row = 0; row < kRows; ++row) {
      const __m512i start = _mm512_set1_epi32(job.x_sums[side + static_cast<size_t>(row)]);
      PELAGO_UNROLL
      for (int panel = 0; panel < kPanels; ++panel) levels[row][panel] = start;
    }
    constexpr size_t kStep = kNibbles ? 2 : 1;  // words that 64 bytes of a panel hold
    const std::byte* next = next_of<kRows, kPanels>(job, group, job.group_words / kStep * 64);
    for (size_t word = 0; word < job.group_words; word += kStep, weights += 64, next += 64) {
      fetch<kRows == 1 ? kPanels : 1>(next, job.panel_bytes);
      __m512i columns[kStep][kPanels];
      PELAGO_UNROLL
      for (int panel = 0; panel < kPanels; ++panel) {
        const __m512i bytes =
            _mm512_loadu_si512(weights + static_cast<size_t>(panel) * job.panel_bytes);
        if constexpr (kNibbles) {
          columns[0][panel] = _mm512_and_si512(bytes, low);
          columns[1][panel] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
        } else {
          columns[0][panel] = bytes;
        }
      }
      PELAGO_UNROLL
      for (size_t half = 0; half < kStep; ++half, x += kRows) {
        PELAGO_UNROLL
        for (int row = 0; row < kRows; ++row) {
          const __m512i left = broadcast(x + row);
          PELAGO_UNROLL
          for (int panel = 0; panel < kPanels; ++panel) {
            add_product(levels[row][panel], columns[half][panel], left);
          }
        }
      }
    }
    add_scaled<kRows, kPanels>(job, group, levels, sums);
  }
  store<kRows, kPanels>(job, /*adds=*/false, sums);
}

template <Format kFormat, int kRows, int kPanels>
inline void multiply_tile(const PanelJob& job) {
  if constexpr (is_quantised(kFormat)) {
    multiply_levels<kFormat == Format::kInt4, kRows, kPanels>(job);
  } else {
    multiply_floats<kFormat == Format::kBf16, kRows, kPanels>(job);
  }
}

/// How many panels the registers hold for so many rows.
template <Format kFormat, int kRows>
constexpr int kPanelsAtOnce = is_quantised(kFormat) ? (kRows == 1 ? 4 : 2) : (kRows <= 5 ? 4 : 2);

template <Format kFormat, int kRows>
void multiply_rows(const PanelJob& job, size_t num_panels) {
  constexpr size_t kAtOnce = kPanelsAtOnce<kFormat, kRows>;
  PanelJob part = job;
  const auto move_on = [&](size_t panels) {
    part.weights += panels * part.panel_bytes;
    part.scales += panels * part.panel_scales;
    part.c += panels * kPanel;
    num_panels -= panels;
  };
  while (num_panels >= kAtOnce) {
    multiply_tile<kFormat, kRows, static_cast<int>(kAtOnce)>(part);
    move_on(kAtOnce);
  }
  while (num_panels > 0) {
    multiply_tile<kFormat, kRows, 1>(part);
    move_on(1);
  }
}

template <Format kFormat, int kRows = 1>
void multiply(const PanelJob& job, size_t num_rows, size_t num_panels) {
  if constexpr (static_cast<size_t>(kRows) < tile_rows(kFormat)) {
    if (num_rows != kRows) return multiply<kFormat, kRows + 1>(job, num_rows, num_panels);
  }
  multiply_rows<kFormat, kRows>(job, num_panels);
}

}  // namespace
}  // namespace pelago::chips::packed

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace pelago::chips::packed {

MultiplyPanels avx512_multiply_panels(Format format) {
  static const bool kHas = __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") &&
                           __builtin_cpu_supports("avx512bf16") &&
                           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("f16c");
  if (!kHas) return nullptr;
  switch (format) {
    case Format::kF32:
      return multiply<Format::kF32>;
    case Format::kBf16:
      return multiply<Format::kBf16>;
    case Format::kInt8:
      return multiply<Format::kInt8>;
    default:
      return multiply<Format::kInt4>;
  }
}

}  // namespace pelago::chips::packed

#else

namespace pelago::chips::packed {
MultiplyPanels avx512_multiply_panels(Format) { return nullptr; }
}  // namespace pelago::chips::packed

#endif
