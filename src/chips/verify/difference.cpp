#include "chips/verify/difference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "chips/torch.h"

namespace pelago::chips {
namespace {

constexpr double kAny = std::numeric_limits<double>::infinity();

double ratio(double part, double whole) { return part == 0 ? 0 : whole > 0 ? part / whole : kAny; }

/// By dtype: f32, fp16, bf16.
template <typename T>
T choose(c10::ScalarType dtype, T f32, T fp16, T bf16) {
  return dtype == at::kBFloat16 ? bf16 : dtype == at::kHalf ? fp16 : f32;
}

}  // namespace

Difference difference_of(const Tensor& a, const Tensor& b) {
  if (a.sizes() != b.sizes()) return {kAny, kAny};
  if (a.numel() == 0) return {};
  const Tensor wanted = b.to(at::kDouble).reshape({-1});
  const Tensor found = a.to(at::kDouble).reshape({-1});
  const Tensor difference = found - wanted;
  if (!difference.isfinite().all().item<bool>()) {
    // Both may say inf, or NaN, where the mathematics does.
    const bool agree = found.isfinite().eq(wanted.isfinite()).all().item<bool>() &&
                       wanted.isfinite().logical_not().any().item<bool>();
    if (!agree) return {kAny, kAny};
    const Tensor both = wanted.isfinite();
    return difference_of(found.masked_select(both), wanted.masked_select(both));
  }
  return {
      .largest = ratio(difference.abs().max().item<double>(), wanted.abs().max().item<double>()),
      .rms = ratio(difference.norm().item<double>(), wanted.norm().item<double>())};
}

Verdict judge(const Difference& difference, const DifferenceBound& bound) {
  const auto within = [&](const Difference& limit) {
    return difference.largest <= limit.largest && difference.rms <= limit.rms;
  };
  return within(bound.warn) ? Verdict::kOk : within(bound.fail) ? Verdict::kWarn : Verdict::kFail;
}

// What two ways of computing the same differ by, the 2m preset on one CPU, kernels of ours against
// composites of libtorch's operators: operators 1e-6 in f32 and 7e-3 in bf16, the loss 3e-6 in
// bf16, gradients 2e-6 and 2e-2, the step (rms) 2e-4 and 0.25. The bounds leave room for other
// makers'.

DifferenceBound operator_bound(c10::ScalarType dtype) {
  // A rounding is 2^-9 in bf16 and 2^-12 in fp16 of the largest value, and each device rounds a few
  // times. f32 sums over thousands of products differ by their order; beyond `warn` is the reach of
  // matrix units with short inputs (TF32, 2^-11), which training survives and a comparison should
  // tell.
  return choose<DifferenceBound>(dtype,
                                 {{2e-5, 1e-5}, {4e-3, 2e-3}},
                                 {{4e-3, 2e-3}, {1.6e-2, 8e-3}},
                                 {{3e-2, 1e-2}, {0.1, 4e-2}});
}

DifferenceBound loss_bound(c10::ScalarType dtype) {
  return choose<DifferenceBound>(dtype,
                                 {{1e-5, 1e-5}, {1e-4, 1e-4}},
                                 {{2e-4, 2e-4}, {2e-3, 2e-3}},
                                 {{1e-3, 1e-3}, {1e-2, 1e-2}});
}

DifferenceBound gradient_bound(c10::ScalarType dtype) {
  return choose<DifferenceBound>(
      dtype, {{1e-4, 1e-4}, {1e-2, 1e-2}}, {{2e-2, 2e-2}, {0.1, 0.1}}, {{0.1, 5e-2}, {0.4, 0.2}});
}

DifferenceBound step_bound(c10::ScalarType dtype) {
  return choose<DifferenceBound>(
      dtype, {{kAny, 2e-2}, {kAny, 0.2}}, {{kAny, 0.3}, {kAny, 0.9}}, {{kAny, 0.4}, {kAny, 0.9}});
}

c10::ScalarType coarser(c10::ScalarType a, c10::ScalarType b) {
  for (const c10::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    if (a == dtype || b == dtype) return dtype;
  }
  return at::kFloat;
}

}  // namespace pelago::chips
