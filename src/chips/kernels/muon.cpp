// Muon's step: momentum, made orthogonal. It is matrix products all through, which each chip's own
// library does best, so there is one form of it for all of them.
#include <algorithm>
#include <cmath>
#include <utility>

#include "chips/kernels.h"
#include "chips/kernels/moments.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace {

constexpr int kIterations = 5;
/// Singular values of a sound result end below 1.3 (1.2, and rounding in 8 bits), so it is no
/// longer than 1.3 times the root of their number; a flipped exponent makes it longer by powers of
/// ten.
constexpr double kSingularMax = 2;

/// A matrix with the singular vectors of direction and singular values of 0.7 to 1.2: five steps of
/// the odd polynomial a x + b x^3 + c x^5, whose slope at 0 is as steep as it can be without ever
/// leaving that band. [R,C] f32, which is overwritten, to [R,C] in dtype. No value comes to the
/// host.
Tensor orthogonalised(Tensor direction, at::ScalarType dtype) {
  constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315;
  const bool is_tall = direction.size(0) > direction.size(1);
  // The norm is 0 only where nothing has ever had a gradient.
  direction.div_(at::linalg_vector_norm(direction).clamp_min(1e-20));
  Tensor x = direction.to(dtype);  // [R,C]
  direction.reset();
  if (is_tall) x = x.t().contiguous();  // [S,L]: the smaller side squared
  for (int i = 0; i < kIterations; ++i) {
    const Tensor square = at::mm(x, x.t());                           // [S,S]
    const Tensor factor = at::addmm(square, square, square, kB, kC);  // b A + c A A
    x = at::addmm(x, factor, x, kA, 1);
  }
  const double longest = kSingularMax * std::sqrt(static_cast<double>(x.size(0)));
  // NaN compares false.
  x.masked_fill_(at::linalg_vector_norm(x).le(longest).logical_not_(), 0);
  return is_tall ? x.t() : x;
}

}  // namespace

void muon_step(
    Tensor& master, const Tensor& grad, Tensor& m, Tensor& weights, const MuonOptions& options) {
  const auto is_like_master = [&](const Tensor& values) {
    return values.is_contiguous() && values.sizes() == master.sizes();
  };
  TORCH_CHECK(master.dim() == 2 && is_like_master(master) && is_like_master(grad) &&
                  is_like_master(m) && is_like_master(weights),
              "muon_step: master, grad, m and weights must be contiguous matrices of one shape, "
              "master is ",
              master.sizes());
  const at::NoGradGuard no_grad;
  const double m_max = muon_moment_max(options.momentum, options.grad_norm_max);
  m.masked_fill_(m.abs().le(m_max).logical_not_(), 0);
  m.mul_(options.momentum).add_(grad, options.grad_scale);
  Tensor direction = (grad * options.grad_scale).add_(m, options.momentum);  // [R,C]
  const Tensor step = orthogonalised(std::move(direction), weights.scalar_type());
  const double longest = static_cast<double>(std::max(master.size(0), master.size(1)));
  master.mul_(1 - options.lr * options.weight_decay)
      .sub_(step.to(at::kFloat), options.lr * 0.2 * std::sqrt(longest));
  if (!weights.is_same(master)) weights.copy_(master);
}

}  // namespace pelago::chips
