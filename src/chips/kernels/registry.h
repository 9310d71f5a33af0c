// Calls of the operators registered with libtorch's dispatcher as pelago::NAME (registry.cpp has
// the schemas). Forward and backward are operators of their own, functional where memory allows,
// so that a plug-in sees, times and runs each of them like any ATen operator. Autograd is not part
// of them: the functions of chips/kernels.h add it.
#pragma once

#include <cstdint>
#include <tuple>

#include "chips/kernels.h"
#include "chips/tensor.h"

namespace pelago::chips::ops {

/// Returns {y, 1/rms}; 1/rms is f32, one a row.
std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& weight, double eps);
/// Returns {grad_x, grad_weight}. grad_sum, if there, is added to grad_x: the gradient that comes
/// down the residual stream.
std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad_y,
                                             const c10::optional<Tensor>& grad_sum,
                                             const Tensor& x,
                                             const Tensor& weight,
                                             const Tensor& inverse_rms);
/// Returns {y, x + residual, 1/rms}.
std::tuple<Tensor, Tensor, Tensor> add_rms_norm(const Tensor& x,
                                                const Tensor& residual,
                                                const Tensor& weight,
                                                double eps);
/// backward turns by the negative angle, which is the gradient.
Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backward);
/// Returns {out [B,T_new,H,E], log of the softmax's denominator f32 [B,H,T_new]}.
std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v);
/// Returns {grad_q, grad_k, grad_v}.
std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_out,
                                                      const Tensor& q,
                                                      const Tensor& k,
                                                      const Tensor& v,
                                                      const Tensor& out,
                                                      const Tensor& log_sum_exp);
Tensor swiglu(const Tensor& gate_up);
Tensor swiglu_backward(const Tensor& grad_y, const Tensor& gate_up);
/// Returns {f32 sum of losses, grad_hidden, grad_head} for an incoming gradient of 1. The gradients
/// have the dtype of hidden, but are f32 for fp16: the loss is scaled after this operator, and
/// unscaled gradients would vanish in fp16. Without need_grad they are empty tensors.
std::tuple<Tensor, Tensor, Tensor> cross_entropy(const Tensor& hidden,
                                                 const Tensor& head,
                                                 const Tensor& targets,
                                                 bool need_grad);
void adamw_(Tensor& master,
            const Tensor& grad,
            Tensor& m,
            Tensor& v,
            Tensor& weights,
            const AdamWOptions& options);
void accumulate_(Tensor& sum, const Tensor& grad);
/// Returns a f64 scalar.
Tensor sum_of_squares(const Tensor& values);

}  // namespace pelago::chips::ops
