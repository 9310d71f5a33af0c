// Attention backward on the CPU. Probabilities are recomputed from the kept log-sum-exp, a block of
// scores at a time, key by query:
//   P^T = exp(K Q^T - lse),  dP^T = V dO^T,  dS^T = P^T (dP^T - D),  D = rowsum(dO * O),
//   dV += P^T dO,  dK += dS^T Q,  dQ^T += K^T dS^T.
// One task takes all query heads of a key head, so dK and dV are summed by one thread in a fixed
// order whatever the number of threads.
#include <algorithm>
#include <cmath>

#include "chips/cpu_kernels/attention/attention.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "chips/cpu_kernels/attention/backward.cpp"
#include <hwy/foreach_target.h>

#include "chips/cpu_kernels/attention/blocks-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pelago::chips::cpu {
namespace HWY_NAMESPACE {
namespace {

/// What a task keeps of one key head.
template <bool kPairs>
struct KeyHead {
  KeyHead(const PackedSizes<kPairs>& sizes, Workspace& workspace)
      : rows(workspace.take(sizes.keys * sizes.head_words)),
        value_rows(workspace.take(sizes.keys * sizes.head_words)),
        panels(workspace.take(sizes.head_dim * sizes.key_words)),
        grad_k(workspace.take_floats(sizes.keys * sizes.head_dim)),
        grad_v(workspace.take_floats(sizes.keys * sizes.head_dim)) {
    std::fill(grad_k, grad_k + sizes.keys * sizes.head_dim, 0.0F);
    std::fill(grad_v, grad_v + sizes.keys * sizes.head_dim, 0.0F);
  }
  static size_t num_words(const PackedSizes<kPairs>& sizes) {
    return 2 * sizes.keys * sizes.head_words + sizes.head_dim * sizes.key_words +
           2 * sizes.keys * sizes.head_dim;
  }
  uint32_t* rows;        // k: [keys][head_words]
  uint32_t* value_rows;  // v: [keys][head_words]
  uint32_t* panels;      // k: [head_dim/16][key_words][16]
  float* grad_k;         // [keys][head_dim]
  float* grad_v;         // [keys][head_dim]
};

/// What a task keeps of one block of queries.
template <bool kPairs>
struct QueryBlock {
  QueryBlock(const PackedSizes<kPairs>& sizes, Workspace& workspace)
      : rows(workspace.take(kBlockQueries * sizes.head_words)),
        transposed(workspace.take(kBlockQueries * sizes.head_words)),
        panels(workspace.take(kBlockQueries * sizes.head_words)),
        grad_transposed(workspace.take(kBlockQueries * sizes.head_words)),
        grad_panels(workspace.take(kBlockQueries * sizes.head_words)),
        grad_q(workspace.take_floats(sizes.head_dim * kBlockQueries)),
        scratch(workspace.take_floats(kBlockQueries * kPanel)),
        log_sum_exp(workspace.take_floats(kBlockQueries)),
        along(workspace.take_floats(kBlockQueries)),
        scores(workspace.take_floats(kBlockKeys * kBlockQueries)),
        grad_scores(workspace.take_floats(kBlockKeys * kBlockQueries)),
        p_rows(workspace.take(kBlockKeys * kBlockQueries)),
        s_rows(workspace.take(kBlockKeys * kBlockQueries)),
        s_panels(workspace.take(kBlockKeys * kBlockQueries)) {}
  static size_t num_words(const PackedSizes<kPairs>& sizes) {
    return kBlockQueries * (5 * sizes.head_words + sizes.head_dim + kPanel + 2 + 5 * kBlockKeys);
  }
  uint32_t* rows;             // q, then grad_out: [kBlockQueries][head_words]
  uint32_t* transposed;       // q: [2][head_words][16]
  uint32_t* panels;           // q: [head_dim/16][query words][16]
  uint32_t* grad_transposed;  // grad_out, like q
  uint32_t* grad_panels;
  float* grad_q;       // [head_dim][kBlockQueries]
  float* scratch;      // [kBlockQueries][16]
  float* log_sum_exp;  // [kBlockQueries], in units of log2
  float* along;        // [kBlockQueries], D
  float* scores;       // [kBlockKeys][kBlockQueries]
  float* grad_scores;  // [kBlockKeys][kBlockQueries], dP^T
  uint32_t* p_rows;    // P^T: [kBlockKeys][query words]
  uint32_t* s_rows;    // dS^T: [kBlockKeys][query words]
  uint32_t* s_panels;  // dS^T: [2][kBlockKeys/numbers][16]
};

/// Two keys' numbers for neighbouring queries as rows of words.
template <bool kPairs>
HWY_INLINE void store_rows(Wide first, Wide second, uint32_t* rows, size_t column) {
  const WordTag words;
  if constexpr (kPairs) {
    const auto both = paired_words(first, second);
    auto* numbers = reinterpret_cast<uint16_t*>(rows);
    const auto low = hn::And(both, hn::Set(words, 0xFFFF));
    hn::StoreU(hn::TruncateTo(NarrowBits(), low), NarrowBits(), numbers + column);
    hn::StoreU(hn::TruncateTo(NarrowBits(), hn::ShiftRight<16>(both)),
               NarrowBits(),
               numbers + kBlockQueries + column);
  } else {
    hn::Store(hn::BitCast(words, first), words, rows + column);
    hn::Store(hn::BitCast(words, second), words, rows + kBlockQueries + column);
  }
}

/// Scores and dP^T of one block to P^T and dS^T in the forms that the products want.
template <bool kPairs>
void differentiate(const QueryBlock<kPairs>& block,
                   size_t num_keys,
                   size_t first_key_idx,
                   size_t first_query_idx,
                   float scale) {
  const WideTag d;
  const WordTag words;
  const auto log2_scale = hn::Set(d, scale * kLog2E);
  for (size_t column = 0; column < kBlockQueries; column += hn::Lanes(d)) {
    const auto log_sum_exp = hn::Load(d, block.log_sum_exp + column);
    const auto along = hn::Load(d, block.along + column);
    uint32_t* panel =
        block.s_panels + column / kPanel * (kBlockKeys / kNumbers<kPairs>)*kPanel + column % kPanel;
    const auto one_key = [&](size_t key, Wide& p, Wide& s) HWY_ATTR {
      const size_t at = key * kBlockQueries + column;
      p = exp2_wide(hn::MulSub(hn::Load(d, block.scores + at), log2_scale, log_sum_exp));
      if (first_key_idx + key > first_query_idx) {
        p = hn::IfThenZeroElse(is_future(first_key_idx + key, first_query_idx + column), p);
      }
      s = hn::Mul(hn::Mul(p, hn::Set(d, scale)),
                  hn::Sub(hn::Load(d, block.grad_scores + at), along));
    };
    for (size_t key = 0; key < num_keys; key += 2) {
      Wide p0, p1, s0, s1;
      one_key(key, p0, s0);
      one_key(key + 1, p1, s1);
      store_rows<kPairs>(p0, p1, block.p_rows + key * kQueryWords<kPairs>, column);
      store_rows<kPairs>(s0, s1, block.s_rows + key * kQueryWords<kPairs>, column);
      if constexpr (kPairs) {
        hn::Store(paired_words(s0, s1), words, panel + key / 2 * kPanel);
      } else {
        hn::Store(hn::BitCast(words, s0), words, panel + key * kPanel);
        hn::Store(hn::BitCast(words, s1), words, panel + (key + 1) * kPanel);
      }
    }
  }
}

/// All that one block of queries adds to the gradients of the keys and values it sees.
template <bool kPairs>
void backward_block(const PackedSizes<kPairs>& sizes,
                    const KeyHead<kPairs>& keys,
                    const QueryBlock<kPairs>& block,
                    size_t first_query_idx,
                    size_t num_seen,
                    float scale) {
  constexpr size_t kKeyWords = kBlockKeys / kNumbers<kPairs>;
  const size_t head_words = sizes.head_words;
  for (size_t key = 0; key < num_seen; key += kBlockKeys) {
    const size_t num_keys = round_up(std::min(kBlockKeys, num_seen - key), kTileRows);
    const ProductShape to_scores{.num_rows = num_keys,
                                 .num_panels = kQueryPanels,
                                 .num_words = head_words,
                                 .c_stride = kBlockQueries,
                                 .adds = false};
    multiply<kPairs>({keys.rows + key * head_words, head_words, 1, kPanel * head_words},
                     {block.transposed, head_words * kPanel},
                     to_scores,
                     block.scores);
    multiply<kPairs>({keys.value_rows + key * head_words, head_words, 1, kPanel * head_words},
                     {block.grad_transposed, head_words * kPanel},
                     to_scores,
                     block.grad_scores);
    differentiate<kPairs>(block, num_keys, key, first_query_idx, scale);
    const ProductShape to_keys{.num_rows = num_keys,
                               .num_panels = sizes.head_dim / kPanel,
                               .num_words = kQueryWords<kPairs>,
                               .c_stride = sizes.head_dim,
                               .adds = true};
    const size_t row = kQueryWords<kPairs>;
    multiply<kPairs>({block.p_rows, row, 1, kPanel * row},
                     {block.grad_panels, row * kPanel},
                     to_keys,
                     keys.grad_v + key * sizes.head_dim);
    multiply<kPairs>({block.s_rows, row, 1, kPanel * row},
                     {block.panels, row * kPanel},
                     to_keys,
                     keys.grad_k + key * sizes.head_dim);
    multiply<kPairs>(
        {keys.panels + key / kNumbers<kPairs> * kPanel, 1, kPanel, sizes.key_words * kPanel},
        {block.s_panels, kKeyWords * kPanel},
        {.num_rows = sizes.head_dim,
         .num_panels = kQueryPanels,
         .num_words = num_keys / kNumbers<kPairs>,
         .c_stride = kBlockQueries,
         .adds = key > 0},
        block.grad_q);
  }
}

template <typename T>
HWY_INLINE float dot(const T* a, const T* b, size_t num_values) {
  auto sum = hn::Zero(WideTag());
  for_each_vector(num_values, [&](size_t i, auto load, auto) HWY_ATTR {
    sum = hn::MulAdd(load(a + i), load(b + i), sum);
  });
  return hn::GetLane(hn::SumOfLanes(WideTag(), sum));
}

template <typename T>
void store_rows_narrow(const float* rows,
                       size_t num_rows,
                       size_t row_stride,
                       size_t head_dim,
                       T* to,
                       size_t to_stride) {
  for (size_t row = 0; row < num_rows; ++row) {
    for_each_vector(head_dim, [&](size_t i, auto load, auto store) HWY_ATTR {
      store(load(rows + row * row_stride + i), to + row * to_stride + i);
    });
  }
}

/// Packs one block of queries with its gradient, in the forms that the five products want.
template <bool kPairs, typename T>
void pack_queries(const AttentionBackward& job,
                  const PackedSizes<kPairs>& sizes,
                  const QueryBlock<kPairs>& block,
                  size_t batch_idx,
                  size_t token,
                  size_t head) {
  const AttentionShape& shape = job.shape;
  const RowCount count{std::min(kBlockQueries, shape.tokens - token), kBlockQueries};
  const size_t panel_stride = kQueryWords<kPairs> * kPanel;
  const auto pack = [&](const Heads& heads, uint32_t* transposed, uint32_t* panels) HWY_ATTR {
    pack_rows<kPairs>(head_at<T>(heads, batch_idx, token, head),
                      heads.token_stride,
                      count,
                      shape.head_dim,
                      sizes.head_words,
                      block.rows);
    transpose_queries(block.rows, sizes.head_words, transposed);
    pack_panels<kPairs>(block.rows, kBlockQueries, sizes.head_dim, panel_stride, panels);
  };
  pack(job.q, block.transposed, block.panels);
  pack(job.grad_out, block.grad_transposed, block.grad_panels);
  const float* log_sum_exp =
      job.log_sum_exp + (batch_idx * shape.heads + head) * shape.tokens + token;
  // Queries behind the end have rows of zeros: whatever their P, they add nothing.
  for (size_t query = 0; query < kBlockQueries; ++query) {
    const bool is_real = query < count.num_rows;
    block.log_sum_exp[query] = is_real ? log_sum_exp[query] * kLog2E : 0.0F;
    block.along[query] = is_real ? dot(head_at<T>(job.out, batch_idx, token + query, head),
                                       head_at<T>(job.grad_out, batch_idx, token + query, head),
                                       shape.head_dim)
                                 : 0.0F;
  }
}

template <bool kPairs, typename T>
void backward_head(const AttentionBackward& job,
                   size_t batch_idx,
                   size_t key_head,
                   Workspace& workspace) {
  const AttentionShape& shape = job.shape;
  const PackedSizes<kPairs> sizes(shape);
  workspace.reset();
  const KeyHead<kPairs> keys(sizes, workspace);
  const QueryBlock<kPairs> block(sizes, workspace);
  const auto pack_keys = [&](const Heads& heads, uint32_t* to) HWY_ATTR {
    pack_rows<kPairs>(head_at<T>(heads, batch_idx, 0, key_head),
                      heads.token_stride,
                      {shape.all_tokens, sizes.keys},
                      shape.head_dim,
                      sizes.head_words,
                      to);
  };
  pack_keys(job.k, keys.rows);
  pack_keys(job.v, keys.value_rows);
  pack_panels<kPairs>(keys.rows, sizes.keys, sizes.head_dim, sizes.key_words * kPanel, keys.panels);

  const float scale = 1 / std::sqrt(static_cast<float>(shape.head_dim));
  const size_t group = shape.heads / shape.key_heads;
  const size_t num_before = shape.all_tokens - shape.tokens;
  for (size_t head = key_head * group; head < (key_head + 1) * group; ++head) {
    for (size_t token = 0; token < shape.tokens; token += kBlockQueries) {
      const size_t num_queries = std::min(kBlockQueries, shape.tokens - token);
      pack_queries<kPairs, T>(job, sizes, block, batch_idx, token, head);
      backward_block<kPairs>(
          sizes, keys, block, num_before + token, num_before + token + num_queries, scale);
      T* grad_q = static_cast<T*>(job.grad_q) +
                  ((batch_idx * shape.tokens + token) * shape.heads + head) * shape.head_dim;
      store_transposed(block.grad_q,
                       num_queries,
                       shape.head_dim,
                       block.scratch,
                       grad_q,
                       shape.heads * shape.head_dim);
    }
  }
  const size_t first = (batch_idx * shape.all_tokens * shape.key_heads + key_head) * shape.head_dim;
  const auto store = [&](const float* rows, void* to) HWY_ATTR {
    store_rows_narrow(rows,
                      shape.all_tokens,
                      sizes.head_dim,
                      shape.head_dim,
                      static_cast<T*>(to) + first,
                      shape.key_heads * shape.head_dim);
  };
  store(keys.grad_k, job.grad_k);
  store(keys.grad_v, job.grad_v);
}

template <bool kPairs, typename T>
void backward_range(const AttentionBackward& job, size_t begin, size_t end) {
  const PackedSizes<kPairs> sizes(job.shape);
  Workspace workspace(KeyHead<kPairs>::num_words(sizes) + QueryBlock<kPairs>::num_words(sizes));
  for (size_t idx = begin; idx < end; ++idx) {
    backward_head<kPairs, T>(job, idx / job.shape.key_heads, idx % job.shape.key_heads, workspace);
  }
}

}  // namespace

void backward_heads(const AttentionBackward& job, size_t begin, size_t end) {
  visit_dtype(job.dtype, [&](auto tag) HWY_ATTR {
    using T = decltype(tag);
    if constexpr (std::is_same_v<T, hwy::bfloat16_t>) {
      if (has_bf16_product()) return backward_range<true, T>(job, begin, end);
    }
    backward_range<false, T>(job, begin, end);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace pelago::chips::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pelago::chips::cpu {
namespace {
HWY_EXPORT(backward_heads);
}  // namespace

void attention_backward(const AttentionBackward& job, size_t begin, size_t end) {
  HWY_DYNAMIC_DISPATCH(backward_heads)(job, begin, end);
}

}  // namespace pelago::chips::cpu
#endif  // HWY_ONCE
