// Rotary positions (arXiv:2104.09864) in Hugging Face's half-split layout: the pair (i, i + E/2)
// turns by position * frequency_i. The gradient is the rotation by the negative angle, so backward
// needs the table only.
#include <torch/csrc/autograd/custom_function.h>

#include "chips/kernels.h"
#include "chips/kernels/composite.h"
#include "chips/kernels/registry.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace composite {

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backward) {
  const std::vector<Tensor> halves = x.to(at::kFloat).chunk(2, -1);  // 2 x [B,T,H,E/2]
  const Tensor wide_cos = cos.unsqueeze(1);                          // [T,1,E/2]
  const Tensor wide_sin = backward ? -sin.unsqueeze(1) : sin.unsqueeze(1);
  const Tensor first = halves[0] * wide_cos - halves[1] * wide_sin;
  const Tensor second = halves[1] * wide_cos + halves[0] * wide_sin;
  return at::cat({first, second}, -1).to(x.scalar_type());
}

}  // namespace composite

namespace {

struct Rope : torch::autograd::Function<Rope> {
  static Tensor forward(torch::autograd::AutogradContext* context,
                        const Tensor& x,
                        const Tensor& cos,
                        const Tensor& sin) {
    context->save_for_backward({cos, sin});
    return ops::rope(x, cos, sin, /*backward=*/false);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    return {ops::rope(grads[0], saved[0], saved[1], /*backward=*/true), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor apply_rope(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  TORCH_CHECK(x.dim() == 4 && x.size(3) % 2 == 0,
              "apply_rope: x ",
              x.sizes(),
              " must be [B,T,H,E] with E even");
  const std::vector<int64_t> table_shape = {x.size(1), x.size(3) / 2};
  TORCH_CHECK(cos.sizes() == table_shape && sin.sizes() == table_shape,
              "apply_rope: cos ",
              cos.sizes(),
              " and sin ",
              sin.sizes(),
              " must be [T,E/2] for x ",
              x.sizes());
  TORCH_CHECK(cos.scalar_type() == at::kFloat && sin.scalar_type() == at::kFloat,
              "apply_rope: cos and sin must be f32");
  return Rope::apply(x, cos, sin);
}

}  // namespace pelago::chips
