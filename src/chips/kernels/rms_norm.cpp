// RMSNorm, alone and with the residual sum in front of it: y = x w / sqrt(mean(x^2) + eps).
// With r = 1/rms and n = x r, the gradient is
//   grad_x = r (g w - n mean(g w n)),  grad_w = sum over rows of g n.
// Backward keeps x (or the residual sum) and one f32 a row. The gradient that comes down the
// residual stream joins grad_x in the same pass.
#include <torch/csrc/autograd/custom_function.h>

#include "chips/kernels.h"
#include "chips/kernels/composite.h"
#include "chips/kernels/registry.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace composite {

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  const Tensor values = x.to(at::kFloat);  // [...,D]
  const Tensor inverse_rms =
      values.square().mean(-1, /*keepdim=*/true).add(eps).rsqrt();  // [...,1]
  const Tensor y = (values * inverse_rms * weight.to(at::kFloat)).to(x.scalar_type());
  return {y, inverse_rms.squeeze(-1)};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad_y,
                                             const c10::optional<Tensor>& grad_sum,
                                             const Tensor& x,
                                             const Tensor& weight,
                                             const Tensor& inverse_rms) {
  const Tensor grad = grad_y.to(at::kFloat);                                // [...,D]
  const Tensor normed = x.to(at::kFloat) * inverse_rms.unsqueeze(-1);       // [...,D]
  const Tensor weighted = grad * weight.to(at::kFloat);                     // [...,D]
  const Tensor along = (weighted * normed).mean(-1, /*keepdim=*/true);      // [...,1]
  Tensor grad_x = (weighted - normed * along) * inverse_rms.unsqueeze(-1);  // [...,D]
  if (grad_sum.has_value()) grad_x = grad_x + grad_sum->to(at::kFloat);
  const Tensor grad_weight = (grad * normed).reshape({-1, weight.size(0)}).sum(0);  // [D]
  return {grad_x.to(x.scalar_type()), grad_weight.to(weight.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm(const Tensor& x,
                                                const Tensor& residual,
                                                const Tensor& weight,
                                                double eps) {
  const Tensor sum = x + residual;
  auto [y, inverse_rms] = composite::rms_norm(sum, weight, eps);
  return {y, sum, inverse_rms};
}

}  // namespace composite

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static Tensor forward(AutogradContext* context,
                        const Tensor& x,
                        const Tensor& weight,
                        double eps) {
    auto [y, inverse_rms] = ops::rms_norm(x, weight, eps);
    context->save_for_backward({x, weight, inverse_rms});
    return y;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    auto [grad_x, grad_weight] =
        ops::rms_norm_backward(grads[0], c10::nullopt, saved[0], saved[1], saved[2]);
    return {grad_x, grad_weight, Tensor()};
  }
};

struct AddRmsNorm : torch::autograd::Function<AddRmsNorm> {
  static variable_list forward(AutogradContext* context,
                               const Tensor& x,
                               const Tensor& residual,
                               const Tensor& weight,
                               double eps) {
    auto [y, sum, inverse_rms] = ops::add_rms_norm(x, residual, weight, eps);
    context->save_for_backward({sum, weight, inverse_rms});
    context->set_materialize_grads(false);
    return {y, sum};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    if (!grads[0].defined()) return {grads[1], grads[1], Tensor(), Tensor()};
    const auto grad_sum =
        grads[1].defined() ? c10::optional<Tensor>(grads[1]) : c10::optional<Tensor>();
    auto [grad, grad_weight] =
        ops::rms_norm_backward(grads[0], grad_sum, saved[0], saved[1], saved[2]);
    return {grad, grad, grad_weight, Tensor()};
  }
};

void check_norm(const Tensor& x, const Tensor& weight) {
  TORCH_CHECK(weight.dim() == 1 && x.dim() >= 1 && x.size(-1) == weight.size(0),
              "rms_norm: weight ",
              weight.sizes(),
              " must be [D] for x ",
              x.sizes());
  TORCH_CHECK(x.scalar_type() == weight.scalar_type(),
              "rms_norm: x is ",
              x.scalar_type(),
              " but weight is ",
              weight.scalar_type());
}

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  check_norm(x, weight);
  return RmsNorm::apply(x, weight, eps);
}

std::pair<Tensor, Tensor> add_rms_norm(const Tensor& x,
                                       const Tensor& residual,
                                       const Tensor& weight,
                                       double eps) {
  check_norm(x, weight);
  TORCH_CHECK(x.sizes() == residual.sizes() && x.scalar_type() == residual.scalar_type(),
              "add_rms_norm: residual ",
              residual.sizes(),
              " must be like x ",
              x.sizes());
  const variable_list results = AddRmsNorm::apply(x, residual, weight, eps);
  return {results[0], results[1]};
}

}  // namespace pelago::chips
