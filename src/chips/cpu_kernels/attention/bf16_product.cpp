// Products of bf16 pairs with f32 sums (VDPBF16PS), which Highway 1.0 does not offer. A tile is 8
// rows by 32 columns: 16 accumulators hide the instruction's latency, and each word of k costs 10
// loads for 16 products, below what two load ports deliver.
#include "chips/cpu_kernels/attention/attention.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace pelago::chips::cpu {
namespace {

#define PELAGO_BF16_TARGET __attribute__((target("avx512f,avx512bf16")))

__attribute__((always_inline)) PELAGO_BF16_TARGET inline __m512 product(__m512 sum,
                                                                        const uint32_t* word,
                                                                        __m512i columns) {
  const __m512i pair = _mm512_set1_epi32(static_cast<int>(*word));
  return _mm512_dpbf16_ps(
      sum, reinterpret_cast<__m512bh>(pair), reinterpret_cast<__m512bh>(columns));
}

struct Tile {
  const uint32_t* left;
  size_t row_stride, word_stride;
  const uint32_t* right0;
  const uint32_t* right1;
  size_t num_words;
  float* c;
  size_t c_stride;
  bool adds;
};

__attribute__((always_inline)) PELAGO_BF16_TARGET inline __m512 start(const Tile& tile,
                                                                      size_t row,
                                                                      size_t column) {
  return tile.adds ? _mm512_loadu_ps(tile.c + row * tile.c_stride + column) : _mm512_setzero_ps();
}

__attribute__((always_inline)) PELAGO_BF16_TARGET inline void store(const Tile& tile,
                                                                    size_t row,
                                                                    __m512 first,
                                                                    __m512 second) {
  _mm512_storeu_ps(tile.c + row * tile.c_stride, first);
  _mm512_storeu_ps(tile.c + row * tile.c_stride + kPanel, second);
}

PELAGO_BF16_TARGET void multiply_tile(const Tile& tile) {
  __m512 a0 = start(tile, 0, 0), b0 = start(tile, 0, kPanel);
  __m512 a1 = start(tile, 1, 0), b1 = start(tile, 1, kPanel);
  __m512 a2 = start(tile, 2, 0), b2 = start(tile, 2, kPanel);
  __m512 a3 = start(tile, 3, 0), b3 = start(tile, 3, kPanel);
  __m512 a4 = start(tile, 4, 0), b4 = start(tile, 4, kPanel);
  __m512 a5 = start(tile, 5, 0), b5 = start(tile, 5, kPanel);
  __m512 a6 = start(tile, 6, 0), b6 = start(tile, 6, kPanel);
  __m512 a7 = start(tile, 7, 0), b7 = start(tile, 7, kPanel);
  const uint32_t* left = tile.left;
  const size_t stride = tile.row_stride;
  for (size_t k = 0; k < tile.num_words; ++k, left += tile.word_stride) {
    const __m512i columns0 = _mm512_loadu_si512(tile.right0 + k * kPanel);
    const __m512i columns1 = _mm512_loadu_si512(tile.right1 + k * kPanel);
    a0 = product(a0, left, columns0), b0 = product(b0, left, columns1);
    a1 = product(a1, left + stride, columns0), b1 = product(b1, left + stride, columns1);
    a2 = product(a2, left + 2 * stride, columns0), b2 = product(b2, left + 2 * stride, columns1);
    a3 = product(a3, left + 3 * stride, columns0), b3 = product(b3, left + 3 * stride, columns1);
    a4 = product(a4, left + 4 * stride, columns0), b4 = product(b4, left + 4 * stride, columns1);
    a5 = product(a5, left + 5 * stride, columns0), b5 = product(b5, left + 5 * stride, columns1);
    a6 = product(a6, left + 6 * stride, columns0), b6 = product(b6, left + 6 * stride, columns1);
    a7 = product(a7, left + 7 * stride, columns0), b7 = product(b7, left + 7 * stride, columns1);
  }
  // Written out, as an array of accumulators would go through memory first.
  store(tile, 0, a0, b0);
  store(tile, 1, a1, b1);
  store(tile, 2, a2, b2);
  store(tile, 3, a3, b3);
  store(tile, 4, a4, b4);
  store(tile, 5, a5, b5);
  store(tile, 6, a6, b6);
  store(tile, 7, a7, b7);
}

}  // namespace

bool has_bf16_product() {
  static const bool kHas =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bf16");
  return kHas;
}

void bf16_product(const LeftOperand& left,
                  const RightOperand& right,
                  const ProductShape& shape,
                  float* c) {
  for (size_t panel = 0; panel < shape.num_panels; panel += 2) {
    for (size_t row = 0; row < shape.num_rows; row += kTileRows) {
      multiply_tile(
          {.left = left.words + row / kPanel * left.panel_stride + row % kPanel * left.row_stride,
           .row_stride = left.row_stride,
           .word_stride = left.word_stride,
           .right0 = right.words + panel * right.panel_stride,
           .right1 = right.words + (panel + 1) * right.panel_stride,
           .num_words = shape.num_words,
           .c = c + row * shape.c_stride + panel * kPanel,
           .c_stride = shape.c_stride,
           .adds = shape.adds});
    }
  }
}

}  // namespace pelago::chips::cpu

#else

namespace pelago::chips::cpu {

bool has_bf16_product() { return false; }

void bf16_product(const LeftOperand&, const RightOperand&, const ProductShape&, float*) {}

}  // namespace pelago::chips::cpu
#endif
