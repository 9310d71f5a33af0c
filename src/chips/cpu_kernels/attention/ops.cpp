// Attention's operators on the CPU: tensors in, plain jobs out, one task a pair of batch and key
// head.
#include "chips/cpu_kernels/attention/attention.h"
#include "chips/cpu_kernels/cpu_kernels.h"
#include "chips/torch.h"

namespace pelago::chips::cpu {
namespace {

// Below this many new queries, packing the keys costs more than it saves.
constexpr int64_t kDecodeTokensMax = 8;

/// The tensor with the elements of a head side by side.
Tensor with_dense_heads(const Tensor& x) { return x.stride(3) == 1 ? x : x.contiguous(); }

Heads heads_of(const Tensor& x) {
  return {.data = x.data_ptr(),
          .batch_stride = static_cast<size_t>(x.stride(0)),
          .token_stride = static_cast<size_t>(x.stride(1)),
          .head_stride = static_cast<size_t>(x.stride(2))};
}

AttentionShape shape_of(const Tensor& q, const Tensor& k) {
  return {.batch = static_cast<size_t>(q.size(0)),
          .tokens = static_cast<size_t>(q.size(1)),
          .all_tokens = static_cast<size_t>(k.size(1)),
          .heads = static_cast<size_t>(q.size(2)),
          .key_heads = static_cast<size_t>(k.size(2)),
          .head_dim = static_cast<size_t>(q.size(3))};
}

}  // namespace

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v) {
  const Tensor queries = with_dense_heads(q);
  const Tensor keys = with_dense_heads(k);
  const Tensor values = with_dense_heads(v);
  const Tensor out = at::empty(q.sizes(), q.options());  // [B,T_new,H,E]
  const Tensor log_sum_exp =
      at::empty({q.size(0), q.size(2), q.size(1)}, q.options().dtype(at::kFloat));
  const AttentionForward job{.dtype = dtype_of(q.scalar_type()),
                             .shape = shape_of(q, k),
                             .q = heads_of(queries),
                             .k = heads_of(keys),
                             .v = heads_of(values),
                             .out = out.data_ptr(),
                             .log_sum_exp = log_sum_exp.data_ptr<float>()};
  const bool decodes = q.size(1) <= kDecodeTokensMax;
  at::parallel_for(0, k.size(0) * k.size(2), 1, [&](int64_t begin, int64_t end) {
    const auto first = static_cast<size_t>(begin);
    const auto last = static_cast<size_t>(end);
    decodes ? attention_decode(job, first, last) : attention_forward(job, first, last);
  });
  return {out, log_sum_exp};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_out,
                                                      const Tensor& q,
                                                      const Tensor& k,
                                                      const Tensor& v,
                                                      const Tensor& out,
                                                      const Tensor& log_sum_exp) {
  const Tensor grads = with_dense_heads(grad_out);
  const Tensor queries = with_dense_heads(q);
  const Tensor keys = with_dense_heads(k);
  const Tensor values = with_dense_heads(v);
  const Tensor grad_q = at::empty(q.sizes(), q.options());
  const Tensor grad_k = at::empty(k.sizes(), k.options());
  const Tensor grad_v = at::empty(v.sizes(), v.options());
  const AttentionBackward job{.dtype = dtype_of(q.scalar_type()),
                              .shape = shape_of(q, k),
                              .q = heads_of(queries),
                              .k = heads_of(keys),
                              .v = heads_of(values),
                              .out = heads_of(out),
                              .grad_out = heads_of(grads),
                              .log_sum_exp = log_sum_exp.data_ptr<float>(),
                              .grad_q = grad_q.data_ptr(),
                              .grad_k = grad_k.data_ptr(),
                              .grad_v = grad_v.data_ptr()};
  at::parallel_for(0, k.size(0) * k.size(2), 1, [&](int64_t begin, int64_t end) {
    attention_backward(job, static_cast<size_t>(begin), static_cast<size_t>(end));
  });
  return {grad_q, grad_k, grad_v};
}

}  // namespace pelago::chips::cpu
