// Packing and products of attention's blocks, for one instruction set. kPairs: words are pairs of
// bf16 (the input must be bf16), else single f32 numbers that any dtype is widened to.
#include <algorithm>
#include <memory>

#include "chips/cpu_kernels/attention/attention.h"
#include "chips/cpu_kernels/values-inl.h"

#if defined(PELAGO_CHIPS_CPU_KERNELS_BLOCKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PELAGO_CHIPS_CPU_KERNELS_BLOCKS_INL_H_
#undef PELAGO_CHIPS_CPU_KERNELS_BLOCKS_INL_H_
#else
#define PELAGO_CHIPS_CPU_KERNELS_BLOCKS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace pelago::chips::cpu {
namespace HWY_NAMESPACE {

using WordTag = hn::Rebind<uint32_t, WideTag>;
using Words = hn::Vec<WordTag>;

constexpr size_t round_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// How many numbers a word holds.
template <bool kPairs>
constexpr size_t kNumbers = kPairs ? 2 : 1;

/// Sizes of the packed operands of one head.
template <bool kPairs>
struct PackedSizes {
  explicit PackedSizes(const AttentionShape& shape)
      : head_dim(round_up(shape.head_dim, 32)),
        head_words(head_dim / kNumbers<kPairs>),
        keys(round_up(shape.all_tokens, kTileRows)),
        key_words(keys / kNumbers<kPairs>) {}
  size_t head_dim;    // E rounded up to whole tiles
  size_t head_words;  // words of a row
  size_t keys;        // T_all rounded up to whole tiles
  size_t key_words;   // words along the keys
};

constexpr size_t kQueryPanels = kBlockQueries / kPanel;
template <bool kPairs>
constexpr size_t kQueryWords = kBlockQueries / kNumbers<kPairs>;

/// Memory of one thread's tasks, one after the other. f32 and words share it: both are 32 bits
/// wide.
class Workspace {
 public:
  explicit Workspace(size_t num_words)
      : words_(std::make_unique_for_overwrite<uint32_t[]>(num_words + kPanel)) {
    reset();
  }
  /// Takes everything back, for the next task.
  void reset() {
    const auto address = reinterpret_cast<uintptr_t>(words_.get());
    next_ = words_.get() + (round_up(address, 64) - address) / sizeof(uint32_t);
  }
  /// num_words words that start on a cache line. Not cleared.
  uint32_t* take(size_t num_words) {
    uint32_t* taken = next_;
    next_ += round_up(num_words, kPanel);
    return taken;
  }
  float* take_floats(size_t num_floats) { return reinterpret_cast<float*>(take(num_floats)); }

 private:
  std::unique_ptr<uint32_t[]> words_;
  uint32_t* next_ = nullptr;
};

/// The first number of a head of one token.
template <typename T>
const T* head_at(const Heads& heads, size_t batch_idx, size_t token_idx, size_t head_idx) {
  return static_cast<const T*>(heads.data) + batch_idx * heads.batch_stride +
         token_idx * heads.token_stride + head_idx * heads.head_stride;
}

/// How many rows pack_rows finds, and how many it makes: those behind the end are zeros.
struct RowCount {
  size_t num_rows, num_padded_rows;
};

/// A head of neighbouring tokens as words [num_padded_rows][head_words].
template <bool kPairs, typename T>
void pack_rows(const T* from,
               size_t row_stride,
               RowCount count,
               size_t head_dim,
               size_t head_words,
               uint32_t* to) {
  for (size_t row = 0; row < count.num_rows; ++row, to += head_words) {
    const T* numbers = from + row * row_stride;
    if constexpr (kPairs) {
      std::memcpy(to, numbers, head_dim * sizeof(T));
    } else {
      auto* wide = reinterpret_cast<float*>(to);
      for_each_vector(head_dim, [&](size_t i, auto load, auto store) HWY_ATTR {
        store(load(numbers + i), wide + i);
      });
    }
    auto* bytes = reinterpret_cast<uint8_t*>(to);
    const size_t used_bytes = head_dim * (kPairs ? 2 : 4);
    std::memset(bytes + used_bytes, 0, head_words * 4 - used_bytes);
  }
  std::memset(to, 0, (count.num_padded_rows - count.num_rows) * head_words * 4);
}

/// Words along rows, in panels of 16 columns: [head_dim/16][num_rows/numbers][16]. num_rows is a
/// multiple of 2. panel_stride in words.
template <bool kPairs>
void pack_panels(
    const uint32_t* rows, size_t num_rows, size_t head_dim, size_t panel_stride, uint32_t* to) {
  const WordTag words;
  const size_t lanes = wide_lanes();
  if constexpr (kPairs) {
    const auto* numbers = reinterpret_cast<const uint16_t*>(rows);
    for (size_t row = 0; row < num_rows; row += 2, numbers += 2 * head_dim) {
      for (size_t column = 0; column < head_dim; column += lanes) {
        const auto low = hn::PromoteTo(words, hn::LoadU(NarrowBits(), numbers + column));
        const auto high =
            hn::PromoteTo(words, hn::LoadU(NarrowBits(), numbers + head_dim + column));
        hn::StoreU(hn::Or(low, hn::ShiftLeft<16>(high)),
                   words,
                   to + column / kPanel * panel_stride + row / 2 * kPanel + column % kPanel);
      }
    }
  } else {
    for (size_t row = 0; row < num_rows; ++row, rows += head_dim) {
      for (size_t column = 0; column < head_dim; column += lanes) {
        hn::StoreU(hn::LoadU(words, rows + column),
                   words,
                   to + column / kPanel * panel_stride + row * kPanel + column % kPanel);
      }
    }
  }
}

/// 16 rows of num_columns <= 512 words (a multiple of the lanes), row_stride apart, to
/// [num_columns][16]: interleaving four rows at a time, twice, is a transposition.
inline void transpose_panel(const float* rows, size_t row_stride, size_t num_columns, float* to) {
  const WideTag d;
  const size_t lanes = wide_lanes();
  HWY_ALIGN float quarters[4][64];
  for (size_t column = 0; column < num_columns; column += lanes) {
    for (size_t quarter = 0; quarter < 4; ++quarter) {
      const float* from = rows + quarter * row_stride + column;
      hn::StoreInterleaved4(hn::LoadU(d, from),
                            hn::LoadU(d, from + 4 * row_stride),
                            hn::LoadU(d, from + 8 * row_stride),
                            hn::LoadU(d, from + 12 * row_stride),
                            d,
                            quarters[quarter]);
    }
    for (size_t part = 0; part < 4; ++part) {
      hn::StoreInterleaved4(hn::Load(d, quarters[0] + part * lanes),
                            hn::Load(d, quarters[1] + part * lanes),
                            hn::Load(d, quarters[2] + part * lanes),
                            hn::Load(d, quarters[3] + part * lanes),
                            d,
                            to + column * kPanel + part * lanes * 4);
    }
  }
}

/// Rows of kBlockQueries queries to panels of queries, words along the head: [2][head_words][16].
inline void transpose_queries(const uint32_t* rows, size_t head_words, uint32_t* to) {
  for (size_t panel = 0; panel < kQueryPanels; ++panel) {
    transpose_panel(reinterpret_cast<const float*>(rows + panel * kPanel * head_words),
                    head_words,
                    head_words,
                    reinterpret_cast<float*>(to + panel * kPanel * head_words));
  }
}

/// A result [head_dim][kBlockQueries] to rows of T, num_queries of them, row_stride apart.
/// scratch: [kBlockQueries][16].
template <typename T>
void store_transposed(const float* result,
                      size_t num_queries,
                      size_t head_dim,
                      float* scratch,
                      T* to,
                      size_t row_stride) {
  for (size_t begin = 0; begin < head_dim; begin += kPanel) {
    transpose_panel(result + begin * kBlockQueries, kBlockQueries, kBlockQueries, scratch);
    const size_t num_columns = std::min(kPanel, head_dim - begin);
    for (size_t query = 0; query < num_queries; ++query) {
      for_each_vector(num_columns, [&](size_t i, auto load, auto store) HWY_ATTR {
        store(load(scratch + query * kPanel + i), to + query * row_stride + begin + i);
      });
    }
  }
}

/// 4 rows of f32 by two vectors: 8 accumulators, which fit the registers of every instruction set.
HWY_INLINE void multiply_f32_tile(const float* left,
                                  const LeftOperand& strides,
                                  const float* right0,
                                  const float* right1,
                                  const ProductShape& shape,
                                  float* c,
                                  size_t second) {
  const WideTag d;
  float* c1 = c + shape.c_stride;
  float* c2 = c1 + shape.c_stride;
  float* c3 = c2 + shape.c_stride;
  const auto zero = hn::Zero(d);
  auto a0 = zero, b0 = zero, a1 = zero, b1 = zero, a2 = zero, b2 = zero, a3 = zero, b3 = zero;
  if (shape.adds) {
    a0 = hn::LoadU(d, c), b0 = hn::LoadU(d, c + second);
    a1 = hn::LoadU(d, c1), b1 = hn::LoadU(d, c1 + second);
    a2 = hn::LoadU(d, c2), b2 = hn::LoadU(d, c2 + second);
    a3 = hn::LoadU(d, c3), b3 = hn::LoadU(d, c3 + second);
  }
  const size_t stride = strides.row_stride;
  for (size_t k = 0; k < shape.num_words; ++k, left += strides.word_stride) {
    const auto columns0 = hn::LoadU(d, right0 + k * kPanel);
    const auto columns1 = hn::LoadU(d, right1 + k * kPanel);
    const auto row0 = hn::Set(d, left[0]), row1 = hn::Set(d, left[stride]);
    const auto row2 = hn::Set(d, left[2 * stride]), row3 = hn::Set(d, left[3 * stride]);
    a0 = hn::MulAdd(row0, columns0, a0), b0 = hn::MulAdd(row0, columns1, b0);
    a1 = hn::MulAdd(row1, columns0, a1), b1 = hn::MulAdd(row1, columns1, b1);
    a2 = hn::MulAdd(row2, columns0, a2), b2 = hn::MulAdd(row2, columns1, b2);
    a3 = hn::MulAdd(row3, columns0, a3), b3 = hn::MulAdd(row3, columns1, b3);
  }
  hn::StoreU(a0, d, c), hn::StoreU(b0, d, c + second);
  hn::StoreU(a1, d, c1), hn::StoreU(b1, d, c1 + second);
  hn::StoreU(a2, d, c2), hn::StoreU(b2, d, c2 + second);
  hn::StoreU(a3, d, c3), hn::StoreU(b3, d, c3 + second);
}

template <bool kPairs>
void multiply(const LeftOperand& left,
              const RightOperand& right,
              const ProductShape& shape,
              float* c) {
  if constexpr (kPairs) {
    bf16_product(left, right, shape, c);
  } else {
    const auto* lefts = reinterpret_cast<const float*>(left.words);
    const auto* rights = reinterpret_cast<const float*>(right.words);
    const size_t lanes = wide_lanes();
    const auto column_start = [&](size_t column) {
      return rights + column / kPanel * right.panel_stride + column % kPanel;
    };
    for (size_t column = 0; column < shape.num_panels * kPanel; column += 2 * lanes) {
      for (size_t row = 0; row < shape.num_rows; row += 4) {
        multiply_f32_tile(lefts + row / kPanel * left.panel_stride + row % kPanel * left.row_stride,
                          left,
                          column_start(column),
                          column_start(column + lanes),
                          shape,
                          c + row * shape.c_stride + column,
                          lanes);
      }
    }
  }
}

/// Two rows' numbers, one below the other, as words: pairs (first in the low half), rounded to
/// nearest even. Not for NaNs with all bits set.
HWY_INLINE Words paired_words(Wide first, Wide second) {
  const WordTag words;
  const auto half = hn::Set(words, 0x7FFF);
  const auto one = hn::Set(words, 1);
  const auto low = hn::BitCast(words, first);
  const auto high = hn::BitCast(words, second);
  const auto low_rounded = hn::Add(hn::Add(low, half), hn::And(hn::ShiftRight<16>(low), one));
  const auto high_rounded = hn::Add(hn::Add(high, half), hn::And(hn::ShiftRight<16>(high), one));
  return hn::Or(hn::ShiftRight<16>(low_rounded),
                hn::And(high_rounded, hn::Set(words, 0xFFFF0000U)));
}

/// Lanes whose query comes before the key: those must not see it.
HWY_INLINE auto is_future(size_t key_idx, size_t first_query_idx) {
  const hn::Rebind<int32_t, WideTag> integers;
  const auto queries = hn::Iota(integers, static_cast<int32_t>(first_query_idx));
  return hn::RebindMask(WideTag(),
                        hn::Gt(hn::Set(integers, static_cast<int32_t>(key_idx)), queries));
}

}  // namespace HWY_NAMESPACE
}  // namespace pelago::chips::cpu
HWY_AFTER_NAMESPACE();

#endif  // toggled guard
