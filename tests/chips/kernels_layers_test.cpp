#include <doctest/doctest.h>
#include <torch/csrc/autograd/autograd.h>

#include "chips/kernels.h"
#include "chips/kernels_support.h"

namespace pelago::chips {
namespace {

constexpr c10::ScalarType kLayerDtypes[] = {at::kFloat, at::kBFloat16, at::kHalf};

TEST_CASE("rms_norm and its gradients equal their twin at every width and dtype") {
  for (const auto dtype : kLayerDtypes) {
    for (const int64_t width : {1, 3, 16, 31, 64, 257, 320}) {
      CAPTURE(width);
      CAPTURE(c10::toString(dtype));
      const Tensor x = random_tensor({2, 5, width}, dtype, 2.0, 1).requires_grad_();
      const Tensor weight = random_tensor({width}, dtype, 1.0, 2).requires_grad_();
      const Tensor grad = random_tensor({2, 5, width}, dtype, 1.0, 3);
      const Tensor y = rms_norm(x, weight, 1e-6);
      y.backward(grad);
      CHECK((y.scalar_type() == dtype));
      const auto wanted =
          reference::rms_norm_backward(values_of(grad), values_of(x), values_of(weight), 1e-6);
      CHECK(distance(y, reference::rms_norm(values_of(x), values_of(weight), 1e-6)) <
            tolerance_of(dtype));
      // At width 1 the gradient is a difference that all but vanishes: compare with its terms.
      if (width > 1) CHECK(distance(x.grad(), wanted.x) < tolerance_of(dtype));
      CHECK(distance(weight.grad(), wanted.weight) < tolerance_of(dtype));
    }
  }
}

TEST_CASE("add_rms_norm is the sum, then the norm, and sends both gradients down both branches") {
  for (const auto dtype : kLayerDtypes) {
    CAPTURE(c10::toString(dtype));
    const Tensor x = random_tensor({7, 96}, dtype, 1.0, 1).requires_grad_();
    const Tensor residual = random_tensor({7, 96}, dtype, 1.0, 2).requires_grad_();
    const Tensor weight = random_tensor({96}, dtype, 1.0, 3).requires_grad_();
    const Tensor grad_y = random_tensor({7, 96}, dtype, 1.0, 4);
    const Tensor grad_sum = random_tensor({7, 96}, dtype, 1.0, 5);
    const auto [y, sum] = add_rms_norm(x, residual, weight, 1e-5);
    torch::autograd::backward({y, sum}, {grad_y, grad_sum});
    CHECK(sum.equal((x + residual).detach()));
    CHECK(distance(y, reference::rms_norm(values_of(sum), values_of(weight), 1e-5)) <
          tolerance_of(dtype));
    auto wanted =
        reference::rms_norm_backward(values_of(grad_y), values_of(sum), values_of(weight), 1e-5);
    const auto down = values_of(grad_sum);
    for (size_t i = 0; i < down.size(); ++i) wanted.x[i] += down[i];
    CHECK(distance(x.grad(), wanted.x) < tolerance_of(dtype));
    CHECK(x.grad().equal(residual.grad()));
    CHECK(distance(weight.grad(), wanted.weight) < tolerance_of(dtype));
  }
}

TEST_CASE("add_rms_norm takes a gradient of the sum alone, as the last block sends it") {
  const Tensor x = random_tensor({4, 32}).requires_grad_();
  const Tensor residual = random_tensor({4, 32}, at::kFloat, 1.0, 2).requires_grad_();
  const auto [y, sum] = add_rms_norm(x, residual, at::ones({32}), 1e-5);
  sum.sum().backward();
  CHECK(x.grad().equal(at::ones({4, 32})));
  CHECK(residual.grad().equal(at::ones({4, 32})));
}

TEST_CASE("rms_norm takes x that is not contiguous") {
  const Tensor x = random_tensor({40, 6}).t();  // [6,40], columns apart
  const Tensor weight = random_tensor({40}, at::kFloat, 1.0, 2);
  CHECK(rms_norm(x, weight, 1e-6).equal(rms_norm(x.contiguous(), weight, 1e-6)));
}

TEST_CASE("the gradient of a norm's weight is the same bits on one thread and on two") {
  const int num_threads = at::get_num_threads();
  std::vector<Tensor> grads;
  for (const int count : {1, 2}) {
    at::set_num_threads(count);
    const Tensor x = random_tensor({4000, 64}).requires_grad_();
    const Tensor weight = at::ones({64}).requires_grad_();
    rms_norm(x, weight, 1e-6).square().sum().backward();
    grads.push_back(weight.grad());
  }
  at::set_num_threads(num_threads);
  CHECK(grads[0].equal(grads[1]));
}

TEST_CASE("rms_norm refuses a weight of another width by naming both shapes") {
  CHECK_THROWS_WITH_AS(rms_norm(at::ones({2, 8}), at::ones({9}), 1e-6),
                       doctest::Contains("rms_norm: weight [9] must be [D] for x [2, 8]"),
                       c10::Error);
}

TEST_CASE("apply_rope and its gradient equal their twin at every head width and dtype") {
  for (const auto dtype : kLayerDtypes) {
    for (const int64_t head_dim : {2, 6, 32, 64, 80, 128}) {
      CAPTURE(head_dim);
      CAPTURE(c10::toString(dtype));
      const reference::HeadShape shape{
          .batch = 2, .tokens = 5, .all_tokens = 5, .heads = 3, .head_dim = head_dim};
      const Tensor x = random_tensor({2, 5, 3, head_dim}, dtype).requires_grad_();
      const Tensor angle = random_tensor({5, head_dim / 2}, at::kFloat, 3.0, 2);
      const Tensor grad = random_tensor({2, 5, 3, head_dim}, dtype, 1.0, 3);
      const Tensor cos = angle.cos(), sin = angle.sin();
      const Tensor y = apply_rope(x, cos, sin);
      y.backward(grad);
      CHECK(
          distance(y, reference::rope(values_of(x), values_of(cos), values_of(sin), shape, false)) <
          tolerance_of(dtype));
      CHECK(
          distance(x.grad(),
                   reference::rope(values_of(grad), values_of(cos), values_of(sin), shape, true)) <
          tolerance_of(dtype));
    }
  }
}

TEST_CASE("apply_rope takes heads that are a slice of a wider matmul's output") {
  const Tensor wide = random_tensor({2, 3, 10 * 16});
  const Tensor angle = random_tensor({3, 8}, at::kFloat, 1.0, 2);
  const Tensor heads = wide.slice(2, 64, 128).view({2, 3, 4, 16});
  CHECK(apply_rope(heads, angle.cos(), angle.sin())
            .equal(apply_rope(heads.contiguous(), angle.cos(), angle.sin())));
}

TEST_CASE("swiglu and its gradient equal their twin, far out on both sides too") {
  for (const auto dtype : kLayerDtypes) {
    for (const int64_t width : {1, 7, 16, 48, 131}) {
      CAPTURE(width);
      CAPTURE(c10::toString(dtype));
      const Tensor gate_up = random_tensor({6, 2 * width}, dtype, 4.0).requires_grad_();
      const Tensor grad = random_tensor({6, width}, dtype, 1.0, 3);
      const Tensor y = swiglu(gate_up);
      y.backward(grad);
      CHECK(distance(y, reference::swiglu(values_of(gate_up), width)) < tolerance_of(dtype));
      CHECK(distance(gate_up.grad(),
                     reference::swiglu_backward(values_of(grad), values_of(gate_up), width)) <
            tolerance_of(dtype));
    }
  }
  const Tensor extreme = at::tensor({200.0F, -200.0F, 1.0F, 1.0F}).view({1, 4});
  CHECK(at::allclose(swiglu(extreme), at::tensor({200.0F, 0.0F}).view({1, 2})));
}

}  // namespace
}  // namespace pelago::chips
