// Rotary positions on the CPU: one pass, each head's two halves turned together. The input may be a
// slice of a wider matmul's output, as q and k are.
#include "chips/cpu_kernels/cpu_kernels.h"
#include "chips/cpu_kernels/dtype.h"
#include "chips/torch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "chips/cpu_kernels/rope.cpp"
#include <hwy/foreach_target.h>

#include "chips/cpu_kernels/values-inl.h"

#ifndef PELAGO_ROPE_TOKENS
#define PELAGO_ROPE_TOKENS
namespace pelago::chips::cpu {

struct RopeTokens {
  Dtype dtype;
  const void* x;                      // [B,T,H,E] with strides, heads contiguous within
  void* y;                            // [B,T,H,E] contiguous
  const float* cos;                   // [T,E/2]
  const float* sin;                   // [T,E/2]
  size_t num_tokens;                  // T
  size_t num_heads;                   // H
  size_t half;                        // E/2
  size_t batch_stride, token_stride;  // of x, in elements
  size_t head_stride;
  bool backward;
};

}  // namespace pelago::chips::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace pelago::chips::cpu {
namespace HWY_NAMESPACE {

template <typename T>
void turn_token(const RopeTokens& tokens, size_t batch_token_idx) {
  const size_t token_idx = batch_token_idx % tokens.num_tokens;
  const T* x = static_cast<const T*>(tokens.x) +
               batch_token_idx / tokens.num_tokens * tokens.batch_stride +
               token_idx * tokens.token_stride;
  T* y = static_cast<T*>(tokens.y) + batch_token_idx * tokens.num_heads * tokens.half * 2;
  const float* cos = tokens.cos + token_idx * tokens.half;
  const float* sin = tokens.sin + token_idx * tokens.half;
  const size_t half = tokens.half;
  const auto sign = hn::Set(WideTag(), tokens.backward ? -1.0F : 1.0F);
  for_each_vector(half, [&](size_t i, auto load, auto store) HWY_ATTR {
    const auto c = load(cos + i);
    const auto s = hn::Mul(sign, load(sin + i));
    for (size_t head = 0; head < tokens.num_heads; ++head) {
      const T* from = x + head * tokens.head_stride + i;
      T* to = y + head * half * 2 + i;
      const auto first = load(from);
      const auto second = load(from + half);
      store(hn::NegMulAdd(second, s, hn::Mul(first, c)), to);
      store(hn::MulAdd(first, s, hn::Mul(second, c)), to + half);
    }
  });
}

void turn_tokens(const RopeTokens& tokens, size_t begin, size_t end) {
  visit_dtype(tokens.dtype, [&](auto tag) HWY_ATTR {
    for (size_t token = begin; token < end; ++token) turn_token<decltype(tag)>(tokens, token);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace pelago::chips::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pelago::chips::cpu {
namespace {
HWY_EXPORT(turn_tokens);
}  // namespace

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backward) {
  const Tensor heads = x.stride(3) == 1 ? x : x.contiguous();  // [B,T,H,E]
  const Tensor table_cos = cos.contiguous();                   // [T,E/2]
  const Tensor table_sin = sin.contiguous();                   // [T,E/2]
  const Tensor y = at::empty(x.sizes(), x.options());          // [B,T,H,E]
  const RopeTokens tokens{.dtype = dtype_of(x.scalar_type()),
                          .x = heads.data_ptr(),
                          .y = y.data_ptr(),
                          .cos = table_cos.data_ptr<float>(),
                          .sin = table_sin.data_ptr<float>(),
                          .num_tokens = static_cast<size_t>(x.size(1)),
                          .num_heads = static_cast<size_t>(x.size(2)),
                          .half = static_cast<size_t>(x.size(3) / 2),
                          .batch_stride = static_cast<size_t>(heads.stride(0)),
                          .token_stride = static_cast<size_t>(heads.stride(1)),
                          .head_stride = static_cast<size_t>(heads.stride(2)),
                          .backward = backward};
  at::parallel_for(0,
                   x.size(0) * x.size(1),
                   rows_a_thread(x.size(2) * x.size(3)),
                   [&](int64_t begin, int64_t end) {
                     HWY_DYNAMIC_DISPATCH(turn_tokens)
                     (tokens, static_cast<size_t>(begin), static_cast<size_t>(end));
                   });
  return y;
}

}  // namespace pelago::chips::cpu
#endif  // HWY_ONCE
