// The loss on the CPU. A chunk of logits is turned into its own gradient in place with one exp a
// logit: what is stored is exp(logit - max), not yet divided by its row's sum, and minus the sum at
// the target, so that sum * (softmax - onehot) stands in the row. The division is made where it is
// cheap, on [C,D] instead of [C,V]: on the rows of grad_hidden after one matmul and on the rows of
// hidden before the other.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "chips/cpu_kernels/cpu_kernels.h"
#include "chips/cpu_kernels/dtype.h"
#include "chips/torch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "chips/cpu_kernels/cross_entropy.cpp"
#include <hwy/foreach_target.h>

#include "chips/cpu_kernels/values-inl.h"

#ifndef PELAGO_CROSS_ENTROPY_ROWS
#define PELAGO_CROSS_ENTROPY_ROWS
namespace pelago::chips::cpu {

struct LogitRows {
  Dtype dtype;
  void* logits;            // [C,V], become gradients times their row's sum
  const int64_t* targets;  // [C]
  double* losses;          // [C]
  float* inverse_sums;     // [C], 0 for a target that counts for nothing
  size_t vocab;            // V
  bool need_grad;
};

struct ScaledRows {
  Dtype dtype;
  const void* from;     // [C,D]
  const float* scales;  // [C]
  void* to;             // [C,D], may be from
  size_t width;         // D
};

constexpr int64_t kIgnored = -100;

}  // namespace pelago::chips::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace pelago::chips::cpu {
namespace HWY_NAMESPACE {

template <typename T>
HWY_INLINE float to_float(T value) {
  return hn::GetLane(load_wide_part(&value, 1));
}

template <typename T>
void soften_row(const LogitRows& rows, size_t row_idx) {
  const WideTag d;
  T* logits = static_cast<T*>(rows.logits) + row_idx * rows.vocab;
  if (rows.targets[row_idx] == kIgnored) {
    if (rows.need_grad) std::memset(logits, 0, rows.vocab * sizeof(T));
    rows.losses[row_idx] = 0;
    rows.inverse_sums[row_idx] = 0;
    return;
  }
  const auto target = static_cast<size_t>(rows.targets[row_idx]);
  // Lanes behind the end load as 0: at worst the maximum is 0, which shifts the row but harms
  // nothing, unless all logits lie far below; so they are left out of it.
  auto best = hn::Set(d, -std::numeric_limits<float>::infinity());
  size_t begin = 0;
  for (; begin + hn::Lanes(d) <= rows.vocab; begin += hn::Lanes(d)) {
    best = hn::Max(best, load_wide(logits + begin));
  }
  float largest = hn::GetLane(hn::MaxOfLanes(d, best));
  for (; begin < rows.vocab; ++begin) largest = std::max(largest, to_float(logits[begin]));

  const float target_logit = to_float(logits[target]);
  const auto shift = hn::Set(d, largest * kLog2E);
  const auto log2e = hn::Set(d, kLog2E);
  auto sums = hn::Zero(d);
  const size_t whole = rows.vocab / hn::Lanes(d) * hn::Lanes(d);
  for (size_t i = 0; i < whole; i += hn::Lanes(d)) {
    const auto power = exp2_wide(hn::MulSub(load_wide(logits + i), log2e, shift));
    sums = hn::Add(sums, power);
    if (rows.need_grad) store_wide(power, logits + i);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, sums));
  for (size_t i = whole; i < rows.vocab; ++i) {
    const auto power = exp2_wide(hn::MulSub(load_wide_part(logits + i, 1), log2e, shift));
    sum += hn::GetLane(power);
    if (rows.need_grad) store_wide_part(power, logits + i, 1);
  }
  rows.losses[row_idx] =
      std::log(static_cast<double>(sum)) + static_cast<double>(largest) - target_logit;
  rows.inverse_sums[row_idx] = 1.0F / sum;
  if (rows.need_grad) {
    const float power = std::exp(target_logit - largest);
    store_wide_part(hn::Set(d, power - sum), logits + target, 1);
  }
}

void soften_rows(const LogitRows& rows, size_t begin, size_t end) {
  visit_dtype(rows.dtype, [&](auto tag) HWY_ATTR {
    for (size_t row = begin; row < end; ++row) soften_row<decltype(tag)>(rows, row);
  });
}

void scale_rows(const ScaledRows& rows, size_t begin, size_t end) {
  visit_dtype(rows.dtype, [&](auto tag) HWY_ATTR {
    using T = decltype(tag);
    for (size_t row = begin; row < end; ++row) {
      const T* from = static_cast<const T*>(rows.from) + row * rows.width;
      T* to = static_cast<T*>(rows.to) + row * rows.width;
      const auto scale = hn::Set(WideTag(), rows.scales[row]);
      for_each_vector(rows.width, [&](size_t i, auto load, auto store) HWY_ATTR {
        store(hn::Mul(load(from + i), scale), to + i);
      });
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace pelago::chips::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pelago::chips::cpu {
namespace {

HWY_EXPORT(soften_rows);
HWY_EXPORT(scale_rows);

// The larger the chunk, the rarer the pass over [V,D] that adds its part of grad_head; at 512
// tokens and 8k words the logits still fit a last-level cache.
constexpr int64_t kChunkTokens = 512;

void soften(const LogitRows& rows, int64_t num_rows) {
  at::parallel_for(0, num_rows, 8, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(soften_rows)
    (rows, static_cast<size_t>(begin), static_cast<size_t>(end));
  });
}

/// to = from * scales, row by row; both [C,D] contiguous, to may be from.
void scale(const Tensor& from, const float* scales, const Tensor& to) {
  const ScaledRows rows{.dtype = dtype_of(from.scalar_type()),
                        .from = from.data_ptr(),
                        .scales = scales,
                        .to = to.data_ptr(),
                        .width = static_cast<size_t>(from.size(1))};
  at::parallel_for(0, from.size(0), rows_a_thread(from.size(1)), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(scale_rows)(rows, static_cast<size_t>(begin), static_cast<size_t>(end));
  });
}

void check_targets(const Tensor& targets, int64_t vocab) {
  const int64_t* ids = targets.data_ptr<int64_t>();
  for (int64_t i = 0; i < targets.size(0); ++i) {
    TORCH_CHECK(ids[i] == kIgnored || (ids[i] >= 0 && ids[i] < vocab),
                "cross_entropy: target ",
                ids[i],
                " of token ",
                i,
                " is outside the vocabulary of ",
                vocab);
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> cross_entropy(const Tensor& hidden,
                                                 const Tensor& head,
                                                 const Tensor& targets,
                                                 bool need_grad) {
  if (hidden.scalar_type() == at::kHalf) {
    // The CPU has no fp16 matmul; and the gradients stay f32, see registry.h.
    return cpu::cross_entropy(hidden.to(at::kFloat), head.to(at::kFloat), targets, need_grad);
  }
  const int64_t num_tokens = hidden.size(0);
  const int64_t vocab = head.size(0);
  const Tensor rows = hidden.contiguous();     // [N,D]
  const Tensor words = head.contiguous();      // [V,D]
  const Tensor wanted = targets.contiguous();  // [N]
  check_targets(wanted, vocab);
  std::vector<double> losses(static_cast<size_t>(num_tokens));
  std::vector<float> inverse_sums(static_cast<size_t>(num_tokens));
  const int64_t num_gradients = need_grad ? 1 : 0;
  Tensor grad_hidden = at::empty({num_gradients * num_tokens, hidden.size(1)}, hidden.options());
  Tensor grad_head;
  Tensor buffer = at::empty({std::min(num_tokens, kChunkTokens), vocab}, hidden.options());
  Tensor scaled = at::empty({buffer.size(0), hidden.size(1)}, hidden.options());
  for (int64_t begin = 0; begin < num_tokens; begin += kChunkTokens) {
    const int64_t end = std::min(begin + kChunkTokens, num_tokens);
    const Tensor chunk = rows.slice(0, begin, end);   // [C,D]
    Tensor logits = buffer.slice(0, 0, end - begin);  // [C,V]
    at::mm_out(logits, chunk, words.t());
    float* scales = inverse_sums.data() + begin;
    soften({.dtype = dtype_of(hidden.scalar_type()),
            .logits = logits.data_ptr(),
            .targets = wanted.data_ptr<int64_t>() + begin,
            .losses = losses.data() + begin,
            .inverse_sums = scales,
            .vocab = static_cast<size_t>(vocab),
            .need_grad = need_grad},
           end - begin);
    if (!need_grad) continue;
    Tensor grad_chunk = grad_hidden.slice(0, begin, end);  // [C,D]
    at::mm_out(grad_chunk, logits, words);
    scale(grad_chunk, scales, grad_chunk);
    const Tensor scaled_chunk = scaled.slice(0, 0, end - begin);  // [C,D]
    scale(chunk, scales, scaled_chunk);
    const Tensor part = at::mm(logits.t(), scaled_chunk);  // [V,D]
    if (end - begin == num_tokens) {
      grad_head = part;
    } else if (begin == 0) {
      grad_head = part.to(at::kFloat);
    } else {
      cpu::accumulate_(grad_head, part);
    }
  }
  double loss = 0;
  for (const double token_loss : losses) loss += token_loss;
  if (!grad_head.defined()) grad_head = at::zeros({num_gradients * vocab, hidden.size(1)});
  return {at::scalar_tensor(loss, hidden.options().dtype(at::kFloat)),
          grad_hidden,
          grad_head.to(head.scalar_type())};
}

}  // namespace pelago::chips::cpu
#endif  // HWY_ONCE
