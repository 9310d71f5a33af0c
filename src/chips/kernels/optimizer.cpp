// What happens to gradients after backward: they are added up in f32, measured, and moved into the
// weights by AdamW (arXiv:1711.05101). All of it is bound by memory, so each is one pass.
#include <cmath>

#include "chips/kernels.h"
#include "chips/kernels/composite.h"
#include "chips/kernels/moments.h"
#include "chips/kernels/registry.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace composite {

void adamw_(Tensor& master,
            const Tensor& grad,
            Tensor& m,
            Tensor& v,
            Tensor& weights,
            double lr,
            double beta1,
            double beta2,
            double eps,
            double weight_decay,
            int64_t step,
            double grad_scale) {
  const double correction1 = 1 - std::pow(beta1, static_cast<double>(step));
  const double correction2 = 1 - std::pow(beta2, static_cast<double>(step));
  const Tensor scaled = grad * grad_scale;  // [N]
  // m^2 <= bound * v for whatever gradients there were; NaN compares false.
  const Tensor sane =
      (m * m).le(v * moment_bound(beta1, beta2) + kMomentFloor).logical_and_(v.le(kMomentMax));
  const Tensor broken = sane.logical_not();  // [N]
  m.masked_fill_(broken, 0);
  v.masked_fill_(broken, 0);
  m.mul_(beta1).add_(scaled, 1 - beta1);
  v.mul_(beta2).addcmul_(scaled, scaled, 1 - beta2);
  const Tensor denominator = (v / correction2).sqrt_().add_(eps);  // [N]
  master.mul_(1 - lr * weight_decay).addcdiv_(m, denominator, -lr / correction1);
  if (!weights.is_same(master)) weights.copy_(master);
}

void accumulate_(Tensor& sum, const Tensor& grad) { sum.add_(grad); }

Tensor sum_of_squares(const Tensor& values) {
  const Tensor wide = values.flatten().to(at::kDouble);  // [N]
  return at::dot(wide, wide);
}

}  // namespace composite

namespace {

bool is_f32_vector(const Tensor& tensor, const Tensor& like) {
  return tensor.scalar_type() == at::kFloat && tensor.is_contiguous() &&
         tensor.sizes() == like.sizes();
}

}  // namespace

void adamw_step(Tensor& master,
                const Tensor& grad,
                Tensor& m,
                Tensor& v,
                Tensor& weights,
                const AdamWOptions& options) {
  TORCH_CHECK(is_f32_vector(master, master) && is_f32_vector(grad, master) &&
                  is_f32_vector(m, master) && is_f32_vector(v, master),
              "adamw_step: master, grad, m and v must be contiguous f32 of one shape, master is ",
              master.sizes());
  TORCH_CHECK(weights.sizes() == master.sizes() && weights.is_contiguous(),
              "adamw_step: weights ",
              weights.sizes(),
              " must be contiguous and like master ",
              master.sizes());
  TORCH_CHECK(options.step >= 1, "adamw_step: step ", options.step, " must be 1 or more");
  const at::NoGradGuard no_grad;
  ops::adamw_(master, grad, m, v, weights, options);
}

void accumulate(Tensor& sum, const Tensor& grad) {
  TORCH_CHECK(is_f32_vector(sum, sum) && grad.is_contiguous() && grad.numel() == sum.numel(),
              "accumulate: sum ",
              sum.sizes(),
              " must be contiguous f32 and as large as grad ",
              grad.sizes());
  const at::NoGradGuard no_grad;
  ops::accumulate_(sum, grad);
}

double sum_of_squares(const Tensor& values) {
  TORCH_CHECK(is_f32_vector(values, values), "sum_of_squares: values must be contiguous f32");
  const at::NoGradGuard no_grad;
  return ops::sum_of_squares(values).item<double>();
}

}  // namespace pelago::chips
