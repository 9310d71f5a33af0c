// SwiGLU on the CPU: one pass forward, one backward. silu(g) = g / (1 + exp(-g)); exp saturates far
// out, where the quotient is g or 0 as it should be.
#include "chips/cpu_kernels/cpu_kernels.h"
#include "chips/cpu_kernels/dtype.h"
#include "chips/torch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "chips/cpu_kernels/swiglu.cpp"
#include <hwy/foreach_target.h>

#include "chips/cpu_kernels/values-inl.h"

#ifndef PELAGO_SWIGLU_ROWS
#define PELAGO_SWIGLU_ROWS
namespace pelago::chips::cpu {

struct SwigluRows {
  Dtype dtype;
  const void* gate_up;  // [num_rows, 2F]
  const void* grad_y;   // [num_rows, F], backward only
  void* result;         // forward [num_rows, F], backward [num_rows, 2F]
  size_t width;         // F
};

}  // namespace pelago::chips::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace pelago::chips::cpu {
namespace HWY_NAMESPACE {

HWY_INLINE Wide sigmoid(Wide x) {
  const WideTag d;
  // exp(88) is the last below the largest f32; past it 1 / (1 + exp) is 0 in any case.
  const auto bounded = hn::IfThenElse(hn::Lt(x, hn::Set(d, -88.0F)), hn::Set(d, -88.0F), x);
  const auto divisor = hn::Add(hn::Set(d, 1.0F), exp_wide(hn::Neg(bounded)));
  // A division costs as much as the exp. An estimate of 12 bits or more, improved once by Newton's
  // method, is off by 1e-7.
  const auto estimate = hn::ApproximateReciprocal(divisor);
  return hn::Mul(estimate, hn::NegMulAdd(divisor, estimate, hn::Set(d, 2.0F)));
}

void swiglu_rows(const SwigluRows& rows, size_t begin, size_t end) {
  visit_dtype(rows.dtype, [&](auto tag) HWY_ATTR {
    using T = decltype(tag);
    for (size_t row = begin; row < end; ++row) {
      const T* gate = static_cast<const T*>(rows.gate_up) + row * 2 * rows.width;
      const T* up = gate + rows.width;
      T* y = static_cast<T*>(rows.result) + row * rows.width;
      for_each_vector(rows.width, [&](size_t i, auto load, auto store) HWY_ATTR {
        const auto g = load(gate + i);
        store(hn::Mul(hn::Mul(g, sigmoid(g)), load(up + i)), y + i);
      });
    }
  });
}

void swiglu_backward_rows(const SwigluRows& rows, size_t begin, size_t end) {
  const auto one = hn::Set(WideTag(), 1.0F);
  visit_dtype(rows.dtype, [&](auto tag) HWY_ATTR {
    using T = decltype(tag);
    for (size_t row = begin; row < end; ++row) {
      const T* gate = static_cast<const T*>(rows.gate_up) + row * 2 * rows.width;
      const T* up = gate + rows.width;
      const T* grad_y = static_cast<const T*>(rows.grad_y) + row * rows.width;
      T* grad_gate = static_cast<T*>(rows.result) + row * 2 * rows.width;
      T* grad_up = grad_gate + rows.width;
      for_each_vector(rows.width, [&](size_t i, auto load, auto store) HWY_ATTR {
        const auto g = load(gate + i);
        const auto s = sigmoid(g);
        const auto grad = hn::Mul(load(grad_y + i), s);
        const auto slope = hn::MulAdd(g, hn::Sub(one, s), one);
        store(hn::Mul(hn::Mul(grad, load(up + i)), slope), grad_gate + i);
        store(hn::Mul(grad, g), grad_up + i);
      });
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace pelago::chips::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pelago::chips::cpu {
namespace {
HWY_EXPORT(swiglu_rows);
HWY_EXPORT(swiglu_backward_rows);
}  // namespace

Tensor swiglu(const Tensor& gate_up) {
  const Tensor rows_gate_up = gate_up.contiguous();  // [...,2F]
  const int64_t width = gate_up.size(-1) / 2;
  std::vector<int64_t> shape = gate_up.sizes().vec();
  shape.back() = width;
  const Tensor y = at::empty(shape, gate_up.options());  // [...,F]
  const SwigluRows rows{.dtype = dtype_of(gate_up.scalar_type()),
                        .gate_up = rows_gate_up.data_ptr(),
                        .grad_y = nullptr,
                        .result = y.data_ptr(),
                        .width = static_cast<size_t>(width)};
  at::parallel_for(
      0, width > 0 ? y.numel() / width : 0, rows_a_thread(width), [&](int64_t begin, int64_t end) {
        HWY_DYNAMIC_DISPATCH(swiglu_rows)
        (rows, static_cast<size_t>(begin), static_cast<size_t>(end));
      });
  return y;
}

Tensor swiglu_backward(const Tensor& grad_y, const Tensor& gate_up) {
  const Tensor rows_gate_up = gate_up.contiguous();  // [...,2F]
  const Tensor rows_grad = grad_y.contiguous();      // [...,F]
  const Tensor grad = at::empty_like(rows_gate_up);  // [...,2F]
  const int64_t width = gate_up.size(-1) / 2;
  const SwigluRows rows{.dtype = dtype_of(gate_up.scalar_type()),
                        .gate_up = rows_gate_up.data_ptr(),
                        .grad_y = rows_grad.data_ptr(),
                        .result = grad.data_ptr(),
                        .width = static_cast<size_t>(width)};
  at::parallel_for(0,
                   width > 0 ? grad_y.numel() / width : 0,
                   rows_a_thread(width),
                   [&](int64_t begin, int64_t end) {
                     HWY_DYNAMIC_DISPATCH(swiglu_backward_rows)
                     (rows, static_cast<size_t>(begin), static_cast<size_t>(end));
                   });
  return grad;
}

}  // namespace pelago::chips::cpu
#endif  // HWY_ONCE
