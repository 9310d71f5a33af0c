// RMSNorm on the CPU: a row fits the first-level cache, so each row is read twice and written once.
// The gradient of the weight is summed a slice of rows at a time in a fixed order: slices do not
// depend on the number of threads, so neither do the bits.
#include <algorithm>
#include <cmath>

#include "chips/cpu_kernels/cpu_kernels.h"
#include "chips/cpu_kernels/dtype.h"
#include "chips/torch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "chips/cpu_kernels/rms_norm.cpp"
#include <hwy/foreach_target.h>

#include "chips/cpu_kernels/values-inl.h"

#ifndef PELAGO_RMS_NORM_ROWS
#define PELAGO_RMS_NORM_ROWS
namespace pelago::chips::cpu {

struct RmsNormRows {
  Dtype dtype;
  const void* x;         // [num_rows, D]
  const void* residual;  // [num_rows, D] or null
  const void* weight;    // [D]
  void* sum;             // [num_rows, D], x + residual; null without a residual
  void* y;               // [num_rows, D]
  float* inverse_rms;    // [num_rows]
  size_t width;          // D
  float eps;
};

struct RmsNormGradRows {
  Dtype dtype;
  const void* grad_y;        // [num_rows, D]
  const void* grad_sum;      // [num_rows, D] or null
  const void* x;             // [num_rows, D]
  const void* weight;        // [D]
  const float* inverse_rms;  // [num_rows]
  void* grad_x;              // [num_rows, D]
  size_t width;              // D
};

}  // namespace pelago::chips::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace pelago::chips::cpu {
namespace HWY_NAMESPACE {

template <typename T>
void forward_row(const RmsNormRows& rows, size_t row_idx) {
  const WideTag d;
  const size_t start = row_idx * rows.width;
  const T* x = static_cast<const T*>(rows.x) + start;
  if (rows.residual != nullptr) {
    const T* residual = static_cast<const T*>(rows.residual) + start;
    T* sum = static_cast<T*>(rows.sum) + start;
    for_each_vector(rows.width, [&](size_t i, auto load, auto store) HWY_ATTR {
      store(hn::Add(load(x + i), load(residual + i)), sum + i);
    });
    x = sum;
  }
  auto squares = hn::Zero(d);
  for_each_vector(rows.width, [&](size_t i, auto load, auto) HWY_ATTR {
    const auto values = load(x + i);
    squares = hn::MulAdd(values, values, squares);
  });
  const float mean = hn::GetLane(hn::SumOfLanes(d, squares)) / static_cast<float>(rows.width);
  const float inverse_rms = 1.0F / std::sqrt(mean + rows.eps);
  rows.inverse_rms[row_idx] = inverse_rms;
  const auto scale = hn::Set(d, inverse_rms);
  const T* weight = static_cast<const T*>(rows.weight);
  T* y = static_cast<T*>(rows.y) + start;
  for_each_vector(rows.width, [&](size_t i, auto load, auto store) HWY_ATTR {
    store(hn::Mul(hn::Mul(load(x + i), scale), load(weight + i)), y + i);
  });
}

template <typename T>
void backward_row(const RmsNormGradRows& rows, size_t row_idx, float* grad_weight) {
  const WideTag d;
  const size_t start = row_idx * rows.width;
  const T* grad_y = static_cast<const T*>(rows.grad_y) + start;
  const T* x = static_cast<const T*>(rows.x) + start;
  const T* weight = static_cast<const T*>(rows.weight);
  T* grad_x = static_cast<T*>(rows.grad_x) + start;
  const auto scale = hn::Set(d, rows.inverse_rms[row_idx]);
  auto products = hn::Zero(d);
  for_each_vector(rows.width, [&](size_t i, auto load, auto store) HWY_ATTR {
    const auto grad_normed = hn::Mul(load(grad_y + i), hn::Mul(load(x + i), scale));
    products = hn::MulAdd(grad_normed, load(weight + i), products);
    store(hn::Add(load(grad_weight + i), grad_normed), grad_weight + i);
  });
  const float mean = hn::GetLane(hn::SumOfLanes(d, products)) / static_cast<float>(rows.width);
  const auto along = hn::Mul(hn::Set(d, mean), scale);
  const T* grad_sum = rows.grad_sum ? static_cast<const T*>(rows.grad_sum) + start : nullptr;
  for_each_vector(rows.width, [&](size_t i, auto load, auto store) HWY_ATTR {
    const auto weighted = hn::Mul(load(grad_y + i), load(weight + i));
    auto grad = hn::Mul(hn::NegMulAdd(load(x + i), along, weighted), scale);
    if (grad_sum != nullptr) grad = hn::Add(grad, load(grad_sum + i));
    store(grad, grad_x + i);
  });
}

void forward_rows(const RmsNormRows& rows, size_t begin, size_t end) {
  visit_dtype(rows.dtype, [&](auto tag) HWY_ATTR {
    for (size_t row = begin; row < end; ++row) forward_row<decltype(tag)>(rows, row);
  });
}

/// grad_weight: [D] f32, added to.
void backward_rows(const RmsNormGradRows& rows, size_t begin, size_t end, float* grad_weight) {
  visit_dtype(rows.dtype, [&](auto tag) HWY_ATTR {
    for (size_t row = begin; row < end; ++row) {
      backward_row<decltype(tag)>(rows, row, grad_weight);
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace pelago::chips::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pelago::chips::cpu {
namespace {

HWY_EXPORT(forward_rows);
HWY_EXPORT(backward_rows);

// 16 slices at most: enough for the threads a process is given, cheap to add up.
constexpr int64_t kNumSlices = 16;

std::tuple<Tensor, Tensor, Tensor> normalise(const Tensor& x,
                                             const Tensor* residual,
                                             const Tensor& weight,
                                             double eps) {
  const Tensor rows_x = x.contiguous();
  const Tensor rows_residual = residual ? residual->contiguous() : Tensor();
  const Tensor sum = residual ? at::empty_like(rows_x) : Tensor();
  const Tensor y = at::empty_like(rows_x);
  const Tensor inverse_rms =
      at::empty(x.sizes().slice(0, x.sizes().size() - 1), x.options().dtype(at::kFloat));
  const Tensor flat_weight = weight.contiguous();
  const RmsNormRows rows{.dtype = dtype_of(x.scalar_type()),
                         .x = rows_x.data_ptr(),
                         .residual = residual ? rows_residual.data_ptr() : nullptr,
                         .weight = flat_weight.data_ptr(),
                         .sum = residual ? sum.data_ptr() : nullptr,
                         .y = y.data_ptr(),
                         .inverse_rms = inverse_rms.data_ptr<float>(),
                         .width = static_cast<size_t>(weight.size(0)),
                         .eps = static_cast<float>(eps)};
  at::parallel_for(
      0, inverse_rms.numel(), rows_a_thread(weight.size(0)), [&](int64_t begin, int64_t end) {
        HWY_DYNAMIC_DISPATCH(forward_rows)
        (rows, static_cast<size_t>(begin), static_cast<size_t>(end));
      });
  return {y, sum, inverse_rms};
}

}  // namespace

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  auto [y, sum, inverse_rms] = normalise(x, nullptr, weight, eps);
  return {y, inverse_rms};
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm(const Tensor& x,
                                                const Tensor& residual,
                                                const Tensor& weight,
                                                double eps) {
  return normalise(x, &residual, weight, eps);
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad_y,
                                             const c10::optional<Tensor>& grad_sum,
                                             const Tensor& x,
                                             const Tensor& weight,
                                             const Tensor& inverse_rms) {
  const Tensor rows_grad = grad_y.contiguous();
  const Tensor rows_grad_sum = grad_sum.has_value() ? grad_sum->contiguous() : Tensor();
  const Tensor rows_x = x.contiguous();
  const Tensor flat_weight = weight.contiguous();
  const Tensor grad_x = at::empty_like(rows_x);
  const int64_t width = weight.size(0);
  const int64_t num_rows = inverse_rms.numel();
  const int64_t slice_rows = std::max<int64_t>((num_rows + kNumSlices - 1) / kNumSlices,
                                               std::min<int64_t>(num_rows, rows_a_thread(width)));
  const int64_t num_slices = slice_rows > 0 ? (num_rows + slice_rows - 1) / slice_rows : 0;
  const Tensor slices = at::zeros({num_slices, width}, x.options().dtype(at::kFloat));
  const RmsNormGradRows rows{.dtype = dtype_of(x.scalar_type()),
                             .grad_y = rows_grad.data_ptr(),
                             .grad_sum = grad_sum.has_value() ? rows_grad_sum.data_ptr() : nullptr,
                             .x = rows_x.data_ptr(),
                             .weight = flat_weight.data_ptr(),
                             .inverse_rms = inverse_rms.data_ptr<float>(),
                             .grad_x = grad_x.data_ptr(),
                             .width = static_cast<size_t>(width)};
  float* slice_sums = slices.data_ptr<float>();
  at::parallel_for(0, num_slices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      HWY_DYNAMIC_DISPATCH(backward_rows)
      (rows,
       static_cast<size_t>(slice * slice_rows),
       static_cast<size_t>(std::min(num_rows, (slice + 1) * slice_rows)),
       slice_sums + slice * width);
    }
  });
  return {grad_x, slices.sum(0).to(weight.scalar_type())};
}

}  // namespace pelago::chips::cpu
#endif  // HWY_ONCE
