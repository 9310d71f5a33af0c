// Causal attention with grouped query heads. Forward keeps the output and one log-sum-exp a query,
// so that backward can recompute the probabilities block by block (arXiv:2205.14135); nothing of
// size T x T outlives a call. With P the probabilities and D = rowsum(grad_out * out):
//   grad_v = P^T grad_out,  grad_s = P (grad_out v^T - D),  grad_q = grad_s k scale.
// The composite below holds [B,H,T,T] within a call: it is for chips without a kernel of their own.
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <limits>

#include "chips/kernels.h"
#include "chips/kernels/composite.h"
#include "chips/kernels/registry.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace composite {
namespace {

/// [B,T,H,E] in groups of the key heads: [B,K,H/K,T,E], f32.
Tensor grouped(const Tensor& x, int64_t num_key_heads) {
  const int64_t group = x.size(2) / num_key_heads;
  return x.to(at::kFloat)
      .reshape({x.size(0), x.size(1), num_key_heads, group, x.size(3)})
      .permute({0, 2, 3, 1, 4});
}

/// The way back: [B,K,H/K,T,E] to [B,T,H,E].
Tensor ungrouped(const Tensor& x, c10::ScalarType dtype) {
  return x.permute({0, 3, 1, 2, 4})
      .reshape({x.size(0), x.size(3), x.size(1) * x.size(2), x.size(4)})
      .to(dtype);
}

/// Scaled scores with -inf where a key comes after the query: [B,K,H/K,T_new,T_all], f32.
Tensor masked_scores(const Tensor& queries, const Tensor& keys, double scale) {
  const int64_t num_new = queries.size(3);
  const int64_t num_all = keys.size(3);
  const Tensor scores = at::matmul(queries, keys.transpose(-1, -2)) * scale;
  const Tensor key_idx = at::arange(num_all, queries.options().dtype(at::kLong));  // [T_all]
  const Tensor query_idx =
      at::arange(num_all - num_new, num_all, queries.options().dtype(at::kLong)).unsqueeze(1);
  return scores.masked_fill(key_idx > query_idx, -std::numeric_limits<double>::infinity());
}

}  // namespace

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(3)));
  const Tensor scores = masked_scores(grouped(q, k.size(2)), grouped(k, k.size(2)), scale);
  const Tensor log_sum_exp = at::logsumexp(scores, -1);  // [B,K,H/K,T_new]
  const Tensor probabilities = at::exp(scores - log_sum_exp.unsqueeze(-1));
  const Tensor out = at::matmul(probabilities, grouped(v, k.size(2)));
  return {ungrouped(out, q.scalar_type()),
          log_sum_exp.reshape({q.size(0), q.size(2), q.size(1)}).contiguous()};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_out,
                                                      const Tensor& q,
                                                      const Tensor& k,
                                                      const Tensor& v,
                                                      const Tensor& out,
                                                      const Tensor& log_sum_exp) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(3)));
  const int64_t num_key_heads = k.size(2);
  const Tensor queries = grouped(q, num_key_heads);      // [B,K,G,T_new,E]
  const Tensor keys = grouped(k, num_key_heads);         // [B,K,1,T_all,E]
  const Tensor values = grouped(v, num_key_heads);       // [B,K,1,T_all,E]
  const Tensor grad = grouped(grad_out, num_key_heads);  // [B,K,G,T_new,E]
  const Tensor offset =
      log_sum_exp.reshape({q.size(0), num_key_heads, -1, q.size(1)}).unsqueeze(-1);
  const Tensor probabilities = at::exp(masked_scores(queries, keys, scale) - offset);
  const Tensor along = (grad * grouped(out, num_key_heads)).sum(-1, /*keepdim=*/true);
  const Tensor grad_scores =
      probabilities * (at::matmul(grad, values.transpose(-1, -2)) - along) * scale;
  const Tensor grad_q = at::matmul(grad_scores, keys);
  const Tensor grad_k = at::matmul(grad_scores.transpose(-1, -2), queries).sum(2, true);
  const Tensor grad_v = at::matmul(probabilities.transpose(-1, -2), grad).sum(2, true);
  return {ungrouped(grad_q, q.scalar_type()),
          ungrouped(grad_k, k.scalar_type()),
          ungrouped(grad_v, v.scalar_type())};
}

}  // namespace composite

namespace {

struct Attention : torch::autograd::Function<Attention> {
  static Tensor forward(torch::autograd::AutogradContext* context,
                        const Tensor& q,
                        const Tensor& k,
                        const Tensor& v) {
    auto [out, log_sum_exp] = ops::attention(q, k, v);
    context->save_for_backward({q, k, v, out, log_sum_exp});
    return out;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    auto [grad_q, grad_k, grad_v] =
        ops::attention_backward(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4]);
    return {grad_q, grad_k, grad_v};
  }
};

}  // namespace

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v) {
  TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && k.sizes() == v.sizes(),
              "attention: q ",
              q.sizes(),
              ", k ",
              k.sizes(),
              " and v ",
              v.sizes(),
              " must be [B,T_new,H,E] and twice [B,T_all,K,E]");
  TORCH_CHECK(q.size(0) == k.size(0) && q.size(3) == k.size(3) && q.size(1) <= k.size(1) &&
                  k.size(2) > 0 && q.size(2) % k.size(2) == 0,
              "attention: q ",
              q.sizes(),
              " does not fit k ",
              k.sizes(),
              ": B and E equal, T_new <= T_all, H a multiple of K");
  TORCH_CHECK(q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(),
              "attention: q, k and v must have one dtype");
  return Attention::apply(q, k, v);
}

}  // namespace pelago::chips
