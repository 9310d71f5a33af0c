// Attention of a few new queries over many keys, as generation needs it: bound by the memory that
// keys and values come from, so they are read as they lie, once a query head.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "chips/cpu_kernels/attention/attention.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "chips/cpu_kernels/attention/decode.cpp"
#include <hwy/foreach_target.h>

#include "chips/cpu_kernels/values-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pelago::chips::cpu {
namespace HWY_NAMESPACE {
namespace {

/// One query over num_keys keys. query, out: [E] f32; scores: [num_keys]. Returns the log-sum-exp.
template <typename T>
float attend_query(const float* query,
                   const T* keys,
                   size_t key_stride,
                   const T* values,
                   size_t value_stride,
                   size_t num_keys,
                   size_t head_dim,
                   float* scores,
                   float* out) {
  const WideTag d;
  float largest = -std::numeric_limits<float>::infinity();
  for (size_t key = 0; key < num_keys; ++key) {
    const T* row = keys + key * key_stride;
    auto sum = hn::Zero(d);
    for_each_vector(head_dim, [&](size_t i, auto load, auto) HWY_ATTR {
      sum = hn::MulAdd(load(query + i), load(row + i), sum);
    });
    scores[key] = hn::GetLane(hn::SumOfLanes(d, sum));
    largest = std::max(largest, scores[key]);
  }
  auto sums = hn::Zero(d);
  for_each_vector(num_keys, [&](size_t i, auto load, auto store) HWY_ATTR {
    store(exp2_wide(hn::Sub(load(scores + i), hn::Set(d, largest))), scores + i);
  });
  for_each_vector(num_keys, [&](size_t i, auto load, auto) HWY_ATTR {
    sums = hn::Add(sums, load(scores + i));  // lanes behind the end load as 0
  });
  const float sum = hn::GetLane(hn::SumOfLanes(d, sums));
  std::fill(out, out + head_dim, 0.0F);
  for (size_t key = 0; key < num_keys; ++key) {
    const T* row = values + key * value_stride;
    const auto weight = hn::Set(d, scores[key] / sum);
    for_each_vector(head_dim, [&](size_t i, auto load, auto store) HWY_ATTR {
      store(hn::MulAdd(weight, load(row + i), load(out + i)), out + i);
    });
  }
  return largest / kLog2E + std::log(sum);
}

template <typename T>
void decode_head(const AttentionForward& job, size_t batch_idx, size_t key_head) {
  const AttentionShape& shape = job.shape;
  std::vector<float> scores(shape.all_tokens), query(shape.head_dim), out(shape.head_dim);
  const T* keys = static_cast<const T*>(job.k.data) + batch_idx * job.k.batch_stride +
                  key_head * job.k.head_stride;
  const T* values = static_cast<const T*>(job.v.data) + batch_idx * job.v.batch_stride +
                    key_head * job.v.head_stride;
  const auto scale = hn::Set(WideTag(), kLog2E / std::sqrt(static_cast<float>(shape.head_dim)));
  const size_t group = shape.heads / shape.key_heads;
  for (size_t head = key_head * group; head < (key_head + 1) * group; ++head) {
    for (size_t token = 0; token < shape.tokens; ++token) {
      const T* from = static_cast<const T*>(job.q.data) + batch_idx * job.q.batch_stride +
                      token * job.q.token_stride + head * job.q.head_stride;
      for_each_vector(shape.head_dim, [&](size_t i, auto load, auto store) HWY_ATTR {
        store(hn::Mul(load(from + i), scale), query.data() + i);
      });
      job.log_sum_exp[(batch_idx * shape.heads + head) * shape.tokens + token] =
          attend_query(query.data(),
                       keys,
                       job.k.token_stride,
                       values,
                       job.v.token_stride,
                       shape.all_tokens - shape.tokens + token + 1,
                       shape.head_dim,
                       scores.data(),
                       out.data());
      T* to = static_cast<T*>(job.out) +
              ((batch_idx * shape.tokens + token) * shape.heads + head) * shape.head_dim;
      for_each_vector(shape.head_dim, [&](size_t i, auto load, auto store) HWY_ATTR {
        store(load(out.data() + i), to + i);
      });
    }
  }
}

}  // namespace

void decode_heads(const AttentionForward& job, size_t begin, size_t end) {
  visit_dtype(job.dtype, [&](auto tag) HWY_ATTR {
    for (size_t idx = begin; idx < end; ++idx) {
      decode_head<decltype(tag)>(job, idx / job.shape.key_heads, idx % job.shape.key_heads);
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace pelago::chips::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pelago::chips::cpu {
namespace {
HWY_EXPORT(decode_heads);
}  // namespace

void attention_decode(const AttentionForward& job, size_t begin, size_t end) {
  HWY_DYNAMIC_DISPATCH(decode_heads)(job, begin, end);
}

}  // namespace pelago::chips::cpu
#endif  // HWY_ONCE
