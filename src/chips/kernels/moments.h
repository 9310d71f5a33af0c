// What Adam's moments can be. Both are sums over the same gradients g, m with weights (1-b1) b1^k
// and v with weights (1-b2) b2^k, so by Cauchy-Schwarz m^2 <= bound * v whatever the gradients
// were:
//   bound = (1-b1)^2 / ((1-b2) (1 - b1^2/b2))   if b1^2 < b2
// and a single update moves a weight by a few times the learning rate at most. Moments that break
// this were damaged in memory; adamw_step forgets them, and begins them anew with its gradient.
// Muon has no v. Its m is the sum of gradients with weights b^k, none of them longer than what
// clipping leaves, so no element is larger than that length / (1-b); muon_step forgets those that
// are.
#pragma once

namespace pelago::chips {

inline constexpr double kMomentFloor = 1e-30;  // squares below it fade to 0 in f32
inline constexpr double kMomentMax = 1e20;     // of v: no gradient that was let through is so large

inline double moment_bound(double beta1, double beta2) {
  constexpr double kSlack = 4;  // for rounding over many steps, and room for learning
  if (beta1 * beta1 >= beta2) return 1e15;  // no such bound; 1e30 is still far from it
  return kSlack * (1 - beta1) * (1 - beta1) / ((1 - beta2) * (1 - beta1 * beta1 / beta2));
}

/// Of an element of Muon's m. grad_norm_max: 0 is not known.
inline double muon_moment_max(double momentum, double grad_norm_max) {
  constexpr double kSlack = 4;       // for rounding, and for a run that goes on with less clipping
  constexpr double kUnknown = 1e10;  // its square is kMomentMax
  return grad_norm_max > 0 ? kSlack * grad_norm_max / (1 - momentum) : kUnknown;
}

}  // namespace pelago::chips
