// The loss of a language model without its logits: tokens go in chunks of kChunkTokens, the logits
// of a chunk become their own gradient (softmax minus one-hot), and both matmuls of backward are
// made while the chunk is hot. What is kept is [N,D] and [V,D], not [N,V] (in the spirit of
// arXiv:2411.09009). The sum of losses is what a worker back-propagates, so the incoming gradient
// is 1 but for loss scaling; backward then is free.
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "chips/kernels.h"
#include "chips/kernels/composite.h"
#include "chips/kernels/registry.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace composite {
namespace {

constexpr int64_t kChunkTokens = 512;
constexpr int64_t kIgnoredTarget = -100;

}  // namespace

std::tuple<Tensor, Tensor, Tensor> cross_entropy(const Tensor& hidden,
                                                 const Tensor& head,
                                                 const Tensor& targets,
                                                 bool need_grad) {
  const int64_t num_tokens = hidden.size(0);
  Tensor loss = at::zeros({}, hidden.options().dtype(at::kFloat));
  const c10::ScalarType grad_dtype =
      hidden.scalar_type() == at::kHalf ? at::kFloat : hidden.scalar_type();
  Tensor grad_hidden = at::empty(need_grad ? hidden.sizes() : at::IntArrayRef({0}),
                                 hidden.options().dtype(grad_dtype));
  Tensor grad_head =
      at::zeros(need_grad ? head.sizes() : at::IntArrayRef({0}), head.options().dtype(at::kFloat));
  for (int64_t begin = 0; begin < num_tokens; begin += kChunkTokens) {
    const int64_t end = std::min(begin + kChunkTokens, num_tokens);
    const Tensor chunk = hidden.slice(0, begin, end);                      // [C,D]
    const Tensor logits = at::mm(chunk, head.t()).to(at::kFloat);          // [C,V]
    const Tensor counts = targets.slice(0, begin, end) != kIgnoredTarget;  // [C]
    const Tensor wanted = targets.slice(0, begin, end).masked_fill(~counts, 0).unsqueeze(1);
    const Tensor log_sum_exp = at::logsumexp(logits, 1, /*keepdim=*/true);      // [C,1]
    const Tensor losses = (log_sum_exp - logits.gather(1, wanted)).squeeze(1);  // [C]
    loss = loss + losses.masked_fill(~counts, 0).sum();
    if (!need_grad) continue;
    const Tensor ones = at::ones({end - begin, 1}, logits.options());
    const Tensor grad_logits = (at::exp(logits - log_sum_exp).scatter_add(1, wanted, -ones))
                                   .masked_fill(~counts.unsqueeze(1), 0)
                                   .to(hidden.scalar_type());  // [C,V]
    grad_hidden.slice(0, begin, end).copy_(at::mm(grad_logits, head));
    grad_head = grad_head + at::mm(grad_logits.t(), chunk).to(at::kFloat);
  }
  return {loss, grad_hidden, grad_head.to(grad_dtype)};
}

}  // namespace composite

namespace {

struct CrossEntropySum : torch::autograd::Function<CrossEntropySum> {
  static Tensor forward(torch::autograd::AutogradContext* context,
                        const Tensor& hidden,
                        const Tensor& head,
                        const Tensor& targets,
                        bool need_grad) {
    auto [loss, grad_hidden, grad_head] = ops::cross_entropy(hidden, head, targets, need_grad);
    context->save_for_backward({grad_hidden, grad_head});
    context->saved_data["dtype"] = hidden.scalar_type();
    return loss;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const c10::ScalarType dtype = context->saved_data["dtype"].toScalarType();
    // Reading the scalar would make another device wait, so only a CPU saves the pass.
    const bool is_one = grads[0].is_cpu() && grads[0].item<float>() == 1.0F;
    const auto scaled = [&](const Tensor& grad) {
      return (is_one ? grad : grad * grads[0].to(grad.scalar_type())).to(dtype);
    };
    return {scaled(saved[0]), scaled(saved[1]), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor cross_entropy_sum(const Tensor& hidden, const Tensor& head, const Tensor& targets) {
  TORCH_CHECK(hidden.dim() == 2 && head.dim() == 2 && hidden.size(1) == head.size(1),
              "cross_entropy_sum: hidden ",
              hidden.sizes(),
              " and head ",
              head.sizes(),
              " must be [N,D] and [V,D]");
  TORCH_CHECK(hidden.scalar_type() == head.scalar_type(),
              "cross_entropy_sum: hidden and head must have one dtype");
  TORCH_CHECK(
      targets.dim() == 1 && targets.size(0) == hidden.size(0) && targets.scalar_type() == at::kLong,
      "cross_entropy_sum: targets ",
      targets.sizes(),
      " must be int64 [N] for hidden ",
      hidden.sizes());
  const bool need_grad =
      at::GradMode::is_enabled() && (hidden.requires_grad() || head.requires_grad());
  return CrossEntropySum::apply(hidden, head, targets, need_grad);
}

}  // namespace pelago::chips
