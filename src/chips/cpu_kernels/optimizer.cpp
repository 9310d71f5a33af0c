// The optimizer's passes on the CPU, each bound by memory: AdamW reads and writes every state once;
// gradients are added up in f32; the sum of squares is taken in f64 a slice of kSliceValues at a
// time, so that its bits depend neither on the number of threads nor on the vector's width.
#include <algorithm>
#include <cmath>

#include "chips/cpu_kernels/cpu_kernels.h"
#include "chips/cpu_kernels/dtype.h"
#include "chips/kernels/moments.h"
#include "chips/torch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "chips/cpu_kernels/optimizer.cpp"
#include <hwy/foreach_target.h>

#include "chips/cpu_kernels/values-inl.h"

#ifndef PELAGO_OPTIMIZER_RANGES
#define PELAGO_OPTIMIZER_RANGES
namespace pelago::chips::cpu {

struct AdamwRange {
  Dtype dtype;        // of weights
  float* master;      // [N]
  const float* grad;  // [N]
  float* m;           // [N]
  float* v;           // [N]
  void* weights;      // [N], or null if master is the weights
  float grad_scale, beta1, beta2;
  float keep;       // 1 - lr * weight_decay
  float step_size;  // lr / (1 - beta1^step)
  float v_scale;    // 1 / sqrt(1 - beta2^step)
  float eps;
  float moment_bound;  // kernels/moments.h
};

struct SumRange {
  Dtype dtype;       // of grad
  float* sum;        // [N]
  const void* grad;  // [N]
};

// Sums run in this many lanes whatever the machine, then over lanes in order.
constexpr size_t kSquareLanes = 32;

}  // namespace pelago::chips::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace pelago::chips::cpu {
namespace HWY_NAMESPACE {

void adamw_range(const AdamwRange& range, size_t begin, size_t end) {
  const WideTag d;
  const auto grad_scale = hn::Set(d, range.grad_scale);
  const auto beta1 = hn::Set(d, range.beta1), rest1 = hn::Set(d, 1.0F - range.beta1);
  const auto beta2 = hn::Set(d, range.beta2), rest2 = hn::Set(d, 1.0F - range.beta2);
  const auto keep = hn::Set(d, range.keep), step_size = hn::Set(d, range.step_size);
  const auto v_scale = hn::Set(d, range.v_scale), eps = hn::Set(d, range.eps);
  const auto bound = hn::Set(d, range.moment_bound);
  const auto floor = hn::Set(d, static_cast<float>(kMomentFloor));
  const auto most = hn::Set(d, static_cast<float>(kMomentMax));
  visit_dtype(range.dtype, [&](auto tag) HWY_ATTR {
    using T = decltype(tag);
    T* weights = static_cast<T*>(range.weights);
    for_each_vector(end - begin, [&](size_t offset, auto load, auto store) HWY_ATTR {
      const size_t i = begin + offset;
      const auto grad = hn::Mul(load(range.grad + i), grad_scale);
      const auto old_m = load(range.m + i), old_v = load(range.v + i);
      // NaN compares false.
      const auto is_sane = hn::And(hn::Le(hn::Mul(old_m, old_m), hn::MulAdd(bound, old_v, floor)),
                                   hn::Le(old_v, most));
      const auto kept_m = hn::IfThenElseZero(is_sane, old_m);
      const auto kept_v = hn::IfThenElseZero(is_sane, old_v);
      const auto m = hn::MulAdd(beta1, kept_m, hn::Mul(rest1, grad));
      const auto v = hn::MulAdd(beta2, kept_v, hn::Mul(rest2, hn::Mul(grad, grad)));
      const auto denominator = hn::MulAdd(hn::Sqrt(v), v_scale, eps);
      const auto update = hn::Div(hn::Mul(step_size, m), denominator);
      const auto master = hn::Sub(hn::Mul(load(range.master + i), keep), update);
      store(m, range.m + i);
      store(v, range.v + i);
      store(master, range.master + i);
      if (weights != nullptr) store(master, weights + i);
    });
  });
}

void accumulate_range(const SumRange& range, size_t begin, size_t end) {
  visit_dtype(range.dtype, [&](auto tag) HWY_ATTR {
    const auto* grad = static_cast<const decltype(tag)*>(range.grad);
    for_each_vector(end - begin, [&](size_t offset, auto load, auto store) HWY_ATTR {
      const size_t i = begin + offset;
      store(hn::Add(load(range.sum + i), load(grad + i)), range.sum + i);
    });
  });
}

double slice_sum_of_squares(const float* values, size_t num_values) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> narrow;
  const size_t lanes = hn::Lanes(d);
  HWY_ALIGN double sums[kSquareLanes] = {};
  size_t begin = 0;
  for (; begin + kSquareLanes <= num_values; begin += kSquareLanes) {
    for (size_t lane = 0; lane < kSquareLanes; lane += lanes) {
      const auto wide = hn::PromoteTo(d, hn::LoadU(narrow, values + begin + lane));
      // Squares of f32 are exact in f64, so a fused and an unfused addition give the same bits.
      hn::Store(hn::MulAdd(wide, wide, hn::Load(d, sums + lane)), d, sums + lane);
    }
  }
  for (; begin < num_values; ++begin) {
    sums[begin % kSquareLanes] += static_cast<double>(values[begin]) * values[begin];
  }
  double sum = 0;
  for (const double lane : sums) sum += lane;
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace pelago::chips::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pelago::chips::cpu {
namespace {

HWY_EXPORT(adamw_range);
HWY_EXPORT(accumulate_range);
HWY_EXPORT(slice_sum_of_squares);

constexpr int64_t kSliceValues = 65536;

}  // namespace

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
  const auto exponent = static_cast<double>(step);
  const bool is_separate = weights.data_ptr() != master.data_ptr();
  const AdamwRange range{
      .dtype = dtype_of(weights.scalar_type()),
      .master = master.data_ptr<float>(),
      .grad = grad.data_ptr<float>(),
      .m = m.data_ptr<float>(),
      .v = v.data_ptr<float>(),
      .weights = is_separate ? weights.data_ptr() : nullptr,
      .grad_scale = static_cast<float>(grad_scale),
      .beta1 = static_cast<float>(beta1),
      .beta2 = static_cast<float>(beta2),
      .keep = static_cast<float>(1 - lr * weight_decay),
      .step_size = static_cast<float>(lr / (1 - std::pow(beta1, exponent))),
      .v_scale = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, exponent))),
      .eps = static_cast<float>(eps),
      .moment_bound = static_cast<float>(moment_bound(beta1, beta2))};
  at::parallel_for(0, master.numel(), kSliceValues, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(adamw_range)
    (range, static_cast<size_t>(begin), static_cast<size_t>(end));
  });
}

void accumulate_(Tensor& sum, const Tensor& grad) {
  const SumRange range{
      .dtype = dtype_of(grad.scalar_type()), .sum = sum.data_ptr<float>(), .grad = grad.data_ptr()};
  at::parallel_for(0, sum.numel(), kSliceValues, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(accumulate_range)
    (range, static_cast<size_t>(begin), static_cast<size_t>(end));
  });
}

Tensor sum_of_squares(const Tensor& values) {
  const float* numbers = values.data_ptr<float>();
  const int64_t num_values = values.numel();
  const int64_t num_slices = (num_values + kSliceValues - 1) / kSliceValues;
  std::vector<double> sums(static_cast<size_t>(num_slices));
  at::parallel_for(0, num_slices, 4, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      const int64_t first = slice * kSliceValues;
      sums[static_cast<size_t>(slice)] = HWY_DYNAMIC_DISPATCH(slice_sum_of_squares)(
          numbers + first, static_cast<size_t>(std::min(kSliceValues, num_values - first)));
    }
  });
  double sum = 0;
  for (const double slice : sums) sum += slice;
  return at::scalar_tensor(sum, values.options().dtype(at::kDouble));
}

}  // namespace pelago::chips::cpu
#endif  // HWY_ONCE
