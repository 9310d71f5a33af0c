// Where the operators are made known to libtorch's dispatcher. Schemas, both implementations and
// the calls stand in one file on purpose: whoever calls an operator pulls this file out of the
// static library, and with it the registration, which a linker would otherwise drop.
#include "chips/kernels/registry.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "chips/cpu_kernels/cpu_kernels.h"
#include "chips/kernels/composite.h"
#include "chips/torch.h"

namespace pelago::chips {

TORCH_LIBRARY(pelago, library) {
  library.def("rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)");
  library.def(
      "rms_norm_backward(Tensor grad_y, Tensor? grad_sum, Tensor x, Tensor weight, "
      "Tensor inverse_rms) -> (Tensor, Tensor)");
  library.def(
      "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) "
      "-> (Tensor, Tensor, Tensor)");
  library.def("rope(Tensor x, Tensor cos, Tensor sin, bool backward) -> Tensor");
  library.def("attention(Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor)");
  library.def(
      "attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, "
      "Tensor log_sum_exp) -> (Tensor, Tensor, Tensor)");
  library.def("swiglu(Tensor gate_up) -> Tensor");
  library.def("swiglu_backward(Tensor grad_y, Tensor gate_up) -> Tensor");
  library.def(
      "cross_entropy(Tensor hidden, Tensor head, Tensor targets, bool need_grad) "
      "-> (Tensor, Tensor, Tensor)");
  library.def(
      "adamw_(Tensor(a!) master, Tensor grad, Tensor(b!) m, Tensor(c!) v, Tensor(d!) weights, "
      "float lr, float beta1, float beta2, float eps, float weight_decay, int step, "
      "float grad_scale) -> ()");
  library.def("accumulate_(Tensor(a!) sum, Tensor grad) -> ()");
  library.def("sum_of_squares(Tensor values) -> Tensor");
}

TORCH_LIBRARY_IMPL(pelago, CompositeExplicitAutograd, library) {
  library.impl("rms_norm", TORCH_FN(composite::rms_norm));
  library.impl("rms_norm_backward", TORCH_FN(composite::rms_norm_backward));
  library.impl("add_rms_norm", TORCH_FN(composite::add_rms_norm));
  library.impl("rope", TORCH_FN(composite::rope));
  library.impl("attention", TORCH_FN(composite::attention));
  library.impl("attention_backward", TORCH_FN(composite::attention_backward));
  library.impl("swiglu", TORCH_FN(composite::swiglu));
  library.impl("swiglu_backward", TORCH_FN(composite::swiglu_backward));
  library.impl("cross_entropy", TORCH_FN(composite::cross_entropy));
  library.impl("adamw_", TORCH_FN(composite::adamw_));
  library.impl("accumulate_", TORCH_FN(composite::accumulate_));
  library.impl("sum_of_squares", TORCH_FN(composite::sum_of_squares));
}

TORCH_LIBRARY_IMPL(pelago, CPU, library) {
  library.impl("rms_norm", TORCH_FN(cpu::rms_norm));
  library.impl("rms_norm_backward", TORCH_FN(cpu::rms_norm_backward));
  library.impl("add_rms_norm", TORCH_FN(cpu::add_rms_norm));
  library.impl("rope", TORCH_FN(cpu::rope));
  library.impl("attention", TORCH_FN(cpu::attention));
  library.impl("attention_backward", TORCH_FN(cpu::attention_backward));
  library.impl("swiglu", TORCH_FN(cpu::swiglu));
  library.impl("swiglu_backward", TORCH_FN(cpu::swiglu_backward));
  library.impl("cross_entropy", TORCH_FN(cpu::cross_entropy));
  library.impl("adamw_", TORCH_FN(cpu::adamw_));
  library.impl("accumulate_", TORCH_FN(cpu::accumulate_));
  library.impl("sum_of_squares", TORCH_FN(cpu::sum_of_squares));
}

namespace ops {
namespace {

/// The operator's handle; Function is the type of its composite, whose signature is the schema's.
template <typename Function>
auto find_operator(const char* name, Function*) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

}  // namespace

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  static const auto kOperator = find_operator("pelago::rms_norm", composite::rms_norm);
  return kOperator.call(x, weight, eps);
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad_y,
                                             const c10::optional<Tensor>& grad_sum,
                                             const Tensor& x,
                                             const Tensor& weight,
                                             const Tensor& inverse_rms) {
  static const auto kOperator =
      find_operator("pelago::rms_norm_backward", composite::rms_norm_backward);
  return kOperator.call(grad_y, grad_sum, x, weight, inverse_rms);
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm(const Tensor& x,
                                                const Tensor& residual,
                                                const Tensor& weight,
                                                double eps) {
  static const auto kOperator = find_operator("pelago::add_rms_norm", composite::add_rms_norm);
  return kOperator.call(x, residual, weight, eps);
}

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backward) {
  static const auto kOperator = find_operator("pelago::rope", composite::rope);
  return kOperator.call(x, cos, sin, backward);
}

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v) {
  static const auto kOperator = find_operator("pelago::attention", composite::attention);
  return kOperator.call(q, k, v);
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_out,
                                                      const Tensor& q,
                                                      const Tensor& k,
                                                      const Tensor& v,
                                                      const Tensor& out,
                                                      const Tensor& log_sum_exp) {
  static const auto kOperator =
      find_operator("pelago::attention_backward", composite::attention_backward);
  return kOperator.call(grad_out, q, k, v, out, log_sum_exp);
}

Tensor swiglu(const Tensor& gate_up) {
  static const auto kOperator = find_operator("pelago::swiglu", composite::swiglu);
  return kOperator.call(gate_up);
}

Tensor swiglu_backward(const Tensor& grad_y, const Tensor& gate_up) {
  static const auto kOperator =
      find_operator("pelago::swiglu_backward", composite::swiglu_backward);
  return kOperator.call(grad_y, gate_up);
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy(const Tensor& hidden,
                                                 const Tensor& head,
                                                 const Tensor& targets,
                                                 bool need_grad) {
  static const auto kOperator = find_operator("pelago::cross_entropy", composite::cross_entropy);
  return kOperator.call(hidden, head, targets, need_grad);
}

void adamw_(Tensor& master,
            const Tensor& grad,
            Tensor& m,
            Tensor& v,
            Tensor& weights,
            const AdamWOptions& options) {
  static const auto kOperator = find_operator("pelago::adamw_", composite::adamw_);
  kOperator.call(master,
                 grad,
                 m,
                 v,
                 weights,
                 options.lr,
                 options.beta1,
                 options.beta2,
                 options.eps,
                 options.weight_decay,
                 options.step,
                 options.grad_scale);
}

void accumulate_(Tensor& sum, const Tensor& grad) {
  static const auto kOperator = find_operator("pelago::accumulate_", composite::accumulate_);
  kOperator.call(sum, grad);
}

Tensor sum_of_squares(const Tensor& values) {
  static const auto kOperator = find_operator("pelago::sum_of_squares", composite::sum_of_squares);
  return kOperator.call(values);
}

}  // namespace ops
}  // namespace pelago::chips
