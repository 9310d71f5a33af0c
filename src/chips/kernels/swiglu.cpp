// SwiGLU (arXiv:2002.05202): y = silu(gate) * up, gate and up being the halves of one matmul's
// output. Backward recomputes the sigmoid from gate_up instead of keeping it:
//   grad_gate = g up s (1 + gate (1 - s)),  grad_up = g gate s,  s = sigmoid(gate).
#include <torch/csrc/autograd/custom_function.h>

#include "chips/kernels.h"
#include "chips/kernels/composite.h"
#include "chips/kernels/registry.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace composite {

Tensor swiglu(const Tensor& gate_up) {
  const std::vector<Tensor> halves = gate_up.to(at::kFloat).chunk(2, -1);  // 2 x [...,F]
  return (at::silu(halves[0]) * halves[1]).to(gate_up.scalar_type());
}

Tensor swiglu_backward(const Tensor& grad_y, const Tensor& gate_up) {
  const std::vector<Tensor> halves = gate_up.to(at::kFloat).chunk(2, -1);  // 2 x [...,F]
  const Tensor grad = grad_y.to(at::kFloat);                               // [...,F]
  const Tensor sigmoid = at::sigmoid(halves[0]);                           // [...,F]
  const Tensor grad_gate = grad * halves[1] * sigmoid * (1 + halves[0] * (1 - sigmoid));
  const Tensor grad_up = grad * halves[0] * sigmoid;
  return at::cat({grad_gate, grad_up}, -1).to(gate_up.scalar_type());
}

}  // namespace composite

namespace {

struct Swiglu : torch::autograd::Function<Swiglu> {
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& gate_up) {
    context->save_for_backward({gate_up});
    return ops::swiglu(gate_up);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    return {ops::swiglu_backward(grads[0], context->get_saved_variables()[0])};
  }
};

}  // namespace

Tensor swiglu(const Tensor& gate_up) {
  TORCH_CHECK(gate_up.dim() >= 1 && gate_up.size(-1) % 2 == 0,
              "swiglu: gate_up ",
              gate_up.sizes(),
              " must be [...,2F]");
  return Swiglu::apply(gate_up);
}

}  // namespace pelago::chips
