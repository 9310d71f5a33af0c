// The operators on the CPU, by Highway. Signatures are those of kernels/composite.h, so that the
// registry can put either behind one schema. Tensors may have any strides; rows are made contiguous
// where a kernel needs it.
#pragma once

#include <cstdint>
#include <tuple>

#include "chips/tensor.h"

namespace pelago::chips::cpu {

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& weight, double eps);
std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad_y,
                                             const c10::optional<Tensor>& grad_sum,
                                             const Tensor& x,
                                             const Tensor& weight,
                                             const Tensor& inverse_rms);
std::tuple<Tensor, Tensor, Tensor> add_rms_norm(const Tensor& x,
                                                const Tensor& residual,
                                                const Tensor& weight,
                                                double eps);
Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backward);
Tensor swiglu(const Tensor& gate_up);
Tensor swiglu_backward(const Tensor& grad_y, const Tensor& gate_up);
std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v);
std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_out,
                                                      const Tensor& q,
                                                      const Tensor& k,
                                                      const Tensor& v,
                                                      const Tensor& out,
                                                      const Tensor& log_sum_exp);
std::tuple<Tensor, Tensor, Tensor> cross_entropy(const Tensor& hidden,
                                                 const Tensor& head,
                                                 const Tensor& targets,
                                                 bool need_grad);
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
            double grad_scale);
void accumulate_(Tensor& sum, const Tensor& grad);
Tensor sum_of_squares(const Tensor& values);

}  // namespace pelago::chips::cpu
