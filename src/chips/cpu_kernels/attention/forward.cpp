// Attention forward on the CPU: for a block of queries, blocks of keys go by with a running
// maximum, sum and output (arXiv:2205.14135). Blocks above the diagonal are never touched. The keys
// and values of a head are packed once for all query heads that share it.
#include <algorithm>
#include <cmath>
#include <limits>

#include "chips/cpu_kernels/attention/attention.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "chips/cpu_kernels/attention/forward.cpp"
#include <hwy/foreach_target.h>

#include "chips/cpu_kernels/attention/blocks-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pelago::chips::cpu {
namespace HWY_NAMESPACE {
namespace {

/// The running softmax of one block of queries.
struct Running {
  float* scores;     // [kBlockKeys][kBlockQueries]
  uint32_t* panels;  // probabilities as words along the keys: [2][kBlockKeys/numbers][16]
  float* out;        // [head_dim][kBlockQueries], not yet divided by sum
  float* largest;    // [kBlockQueries], in units of log2
  float* sum;        // [kBlockQueries]
  float scale;       // log2(e) / sqrt(E)
};

/// Scores of one block of keys to probabilities; what was summed before shrinks to the new maximum.
template <bool kPairs>
void soften(const Running& running,
            size_t num_keys,
            size_t first_key_idx,
            size_t first_query_idx,
            size_t head_dim) {
  const WideTag d;
  const WordTag words;
  const auto scale = hn::Set(d, running.scale);
  const bool is_first = first_key_idx == 0;
  const size_t num_past = first_query_idx + 1 > first_key_idx
                              ? std::min(num_keys, first_query_idx + 1 - first_key_idx)
                              : 0;
  for (size_t column = 0; column < kBlockQueries; column += hn::Lanes(d)) {
    float* scores = running.scores + column;
    auto best = hn::Set(d, -std::numeric_limits<float>::infinity());
    for (size_t key = 0; key < num_past; ++key) {
      best = hn::Max(best, hn::Load(d, scores + key * kBlockQueries));
    }
    for (size_t key = num_past; key < num_keys; ++key) {
      const auto future = is_future(first_key_idx + key, first_query_idx + column);
      const auto score = hn::IfThenElse(future,
                                        hn::Set(d, -std::numeric_limits<float>::infinity()),
                                        hn::Load(d, scores + key * kBlockQueries));
      hn::Store(score, d, scores + key * kBlockQueries);
      best = hn::Max(best, score);
    }
    best = hn::Mul(best, scale);
    auto sum = hn::Zero(d);
    if (!is_first) {
      const auto before = hn::Load(d, running.largest + column);
      best = hn::Max(best, before);
      const auto shrink = exp2_wide(hn::Sub(before, best));
      sum = hn::Mul(hn::Load(d, running.sum + column), shrink);
      if (!hn::AllTrue(d, hn::Eq(shrink, hn::Set(d, 1.0F)))) {
        for (size_t row = 0; row < head_dim; ++row) {
          float* out = running.out + row * kBlockQueries + column;
          hn::Store(hn::Mul(hn::Load(d, out), shrink), d, out);
        }
      }
    }
    uint32_t* panel =
        running.panels + column / kPanel * (kBlockKeys / kNumbers<kPairs>)*kPanel + column % kPanel;
    for (size_t key = 0; key < num_keys; key += 2) {
      const float* pair = scores + key * kBlockQueries;
      const auto first = exp2_wide(hn::MulSub(hn::Load(d, pair), scale, best));
      const auto second = exp2_wide(hn::MulSub(hn::Load(d, pair + kBlockQueries), scale, best));
      sum = hn::Add(sum, hn::Add(first, second));
      if constexpr (kPairs) {
        hn::Store(paired_words(first, second), words, panel + key / 2 * kPanel);
      } else {
        hn::Store(hn::BitCast(words, first), words, panel + key * kPanel);
        hn::Store(hn::BitCast(words, second), words, panel + (key + 1) * kPanel);
      }
    }
    hn::Store(best, d, running.largest + column);
    hn::Store(sum, d, running.sum + column);
  }
}

/// Divides the output by the sum and writes the log of the softmax's denominator.
inline void finish(const Running& running,
                   size_t num_queries,
                   size_t head_dim,
                   float* log_sum_exp) {
  const WideTag d;
  for (size_t column = 0; column < kBlockQueries; column += hn::Lanes(d)) {
    const auto inverse = hn::Div(hn::Set(d, 1.0F), hn::Load(d, running.sum + column));
    for (size_t row = 0; row < head_dim; ++row) {
      float* out = running.out + row * kBlockQueries + column;
      hn::Store(hn::Mul(hn::Load(d, out), inverse), d, out);
    }
  }
  for (size_t query = 0; query < num_queries; ++query) {
    log_sum_exp[query] = running.largest[query] / kLog2E + std::log(running.sum[query]);
  }
}

/// The packed operands of one key head and of one block of queries, and the running softmax.
template <bool kPairs>
struct ForwardBuffers {
  ForwardBuffers(const PackedSizes<kPairs>& sizes, Workspace& workspace)
      : keys(workspace.take(sizes.keys * sizes.head_words)),
        value_rows(workspace.take(sizes.keys * sizes.head_words)),
        values(workspace.take(sizes.head_dim * sizes.key_words)),
        query_rows(workspace.take(kBlockQueries * sizes.head_words)),
        queries(workspace.take(kBlockQueries * sizes.head_words)),
        scratch(workspace.take_floats(kBlockQueries * kPanel)),
        running{.scores = workspace.take_floats(kBlockKeys * kBlockQueries),
                .panels = workspace.take(kBlockKeys * kBlockQueries),
                .out = workspace.take_floats(sizes.head_dim * kBlockQueries),
                .largest = workspace.take_floats(kBlockQueries),
                .sum = workspace.take_floats(kBlockQueries),
                .scale = 0} {}
  static size_t num_words(const PackedSizes<kPairs>& sizes) {
    return 2 * sizes.keys * sizes.head_words + sizes.head_dim * sizes.key_words +
           kBlockQueries * (2 * sizes.head_words + kPanel + 2 * kBlockKeys + sizes.head_dim + 2);
  }
  uint32_t* keys;        // [keys][head_words]
  uint32_t* value_rows;  // [keys][head_words]
  uint32_t* values;      // [head_dim/16][key_words][16]
  uint32_t* query_rows;  // [kBlockQueries][head_words]
  uint32_t* queries;     // [2][head_words][16]
  float* scratch;        // [kBlockQueries][16]
  Running running;
};

/// Scores, softmax and output of one packed block of queries over the num_seen keys it sees.
template <bool kPairs>
void attend_block(const PackedSizes<kPairs>& sizes,
                  const ForwardBuffers<kPairs>& buffers,
                  size_t first_query_idx,
                  size_t num_seen) {
  const size_t head_words = sizes.head_words;
  for (size_t key = 0; key < num_seen; key += kBlockKeys) {
    const size_t num_keys = round_up(std::min(kBlockKeys, num_seen - key), kTileRows);
    multiply<kPairs>({buffers.keys + key * head_words, head_words, 1, kPanel * head_words},
                     {buffers.queries, head_words * kPanel},
                     {.num_rows = num_keys,
                      .num_panels = kQueryPanels,
                      .num_words = head_words,
                      .c_stride = kBlockQueries,
                      .adds = false},
                     buffers.running.scores);
    soften<kPairs>(buffers.running, num_keys, key, first_query_idx, sizes.head_dim);
    multiply<kPairs>(
        {buffers.values + key / kNumbers<kPairs> * kPanel, 1, kPanel, sizes.key_words * kPanel},
        {buffers.running.panels, kBlockKeys / kNumbers<kPairs> * kPanel},
        {.num_rows = sizes.head_dim,
         .num_panels = kQueryPanels,
         .num_words = num_keys / kNumbers<kPairs>,
         .c_stride = kBlockQueries,
         .adds = key > 0},
        buffers.running.out);
  }
}

template <bool kPairs, typename T>
void attend_head(const AttentionForward& job,
                 size_t batch_idx,
                 size_t key_head,
                 Workspace& workspace) {
  const AttentionShape& shape = job.shape;
  const PackedSizes<kPairs> sizes(shape);
  workspace.reset();
  ForwardBuffers<kPairs> buffers(sizes, workspace);
  buffers.running.scale = kLog2E / std::sqrt(static_cast<float>(shape.head_dim));
  const auto pack = [&](const Heads& heads, size_t token, size_t head, RowCount count, uint32_t* to)
                        HWY_ATTR {
                          pack_rows<kPairs>(head_at<T>(heads, batch_idx, token, head),
                                            heads.token_stride,
                                            count,
                                            shape.head_dim,
                                            sizes.head_words,
                                            to);
                        };
  pack(job.k, 0, key_head, {shape.all_tokens, sizes.keys}, buffers.keys);
  pack(job.v, 0, key_head, {shape.all_tokens, sizes.keys}, buffers.value_rows);
  pack_panels<kPairs>(
      buffers.value_rows, sizes.keys, sizes.head_dim, sizes.key_words * kPanel, buffers.values);

  const size_t group = shape.heads / shape.key_heads;
  const size_t num_before = shape.all_tokens - shape.tokens;
  for (size_t head = key_head * group; head < (key_head + 1) * group; ++head) {
    for (size_t token = 0; token < shape.tokens; token += kBlockQueries) {
      const size_t num_queries = std::min(kBlockQueries, shape.tokens - token);
      pack(job.q, token, head, {num_queries, kBlockQueries}, buffers.query_rows);
      transpose_queries(buffers.query_rows, sizes.head_words, buffers.queries);
      attend_block<kPairs>(sizes, buffers, num_before + token, num_before + token + num_queries);
      finish(buffers.running,
             num_queries,
             sizes.head_dim,
             job.log_sum_exp + (batch_idx * shape.heads + head) * shape.tokens + token);
      store_transposed(
          buffers.running.out,
          num_queries,
          shape.head_dim,
          buffers.scratch,
          static_cast<T*>(job.out) +
              ((batch_idx * shape.tokens + token) * shape.heads + head) * shape.head_dim,
          shape.heads * shape.head_dim);
    }
  }
}

template <bool kPairs, typename T>
void attend_range(const AttentionForward& job, size_t begin, size_t end) {
  Workspace workspace(ForwardBuffers<kPairs>::num_words(PackedSizes<kPairs>(job.shape)));
  for (size_t idx = begin; idx < end; ++idx) {
    attend_head<kPairs, T>(job, idx / job.shape.key_heads, idx % job.shape.key_heads, workspace);
  }
}

}  // namespace

void attend_heads(const AttentionForward& job, size_t begin, size_t end) {
  visit_dtype(job.dtype, [&](auto tag) HWY_ATTR {
    using T = decltype(tag);
    if constexpr (std::is_same_v<T, hwy::bfloat16_t>) {
      if (has_bf16_product()) return attend_range<true, T>(job, begin, end);
    }
    attend_range<false, T>(job, begin, end);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace pelago::chips::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pelago::chips::cpu {
namespace {
HWY_EXPORT(attend_heads);
}  // namespace

void attention_forward(const AttentionForward& job, size_t begin, size_t end) {
  HWY_DYNAMIC_DISPATCH(attend_heads)(job, begin, end);
}

}  // namespace pelago::chips::cpu
#endif  // HWY_ONCE
