// The kernels in the variants that this machine would not choose. The composites run where a chip
// has no kernel of its own; the CPU has all of them, so they are called by name here and compared
// with the CPU's, which the other tests compare with their twins. And Highway takes the best
// instruction set; here it is made to take each of the others.
#include <doctest/doctest.h>

#include <span>
#include <vector>

#include "chips/cpu_kernels/simd.h"
#include "chips/kernels.h"
#include "chips/kernels/composite.h"
#include "chips/kernels/registry.h"
#include "chips/kernels_support.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace {

// Both sides do f32 arithmetic in another order.
bool is_close(const Tensor& actual, const Tensor& wanted) {
  return actual.scalar_type() == wanted.scalar_type() && actual.sizes() == wanted.sizes() &&
         distance(actual, values_of(wanted)) < 2e-5;
}

TEST_CASE("the composites of the layers equal the CPU's kernels") {
  const Tensor x = random_tensor({2, 5, 48});
  const Tensor residual = random_tensor({2, 5, 48}, at::kFloat, 1.0, 2);
  const Tensor weight = random_tensor({48}, at::kFloat, 1.0, 3);
  const auto [y, sum, inverse_rms] = ops::add_rms_norm(x, residual, weight, 1e-5);
  const auto [y2, sum2, inverse_rms2] = composite::add_rms_norm(x, residual, weight, 1e-5);
  CHECK(is_close(y2, y));
  CHECK(is_close(sum2, sum));
  CHECK(is_close(inverse_rms2, inverse_rms));
  const auto [grad, grad_weight] = ops::rms_norm_backward(y, residual, sum, weight, inverse_rms);
  const auto [grad2, grad_weight2] =
      composite::rms_norm_backward(y, residual, sum, weight, inverse_rms);
  CHECK(is_close(grad2, grad));
  CHECK(is_close(grad_weight2, grad_weight));
  CHECK(is_close(composite::swiglu(x), ops::swiglu(x)));
  const Tensor grad_y = random_tensor({2, 5, 24});
  CHECK(is_close(composite::swiglu_backward(grad_y, x), ops::swiglu_backward(grad_y, x)));
  const Tensor heads = x.view({2, 5, 3, 16});
  const Tensor angle = random_tensor({5, 8});
  for (const bool backward : {false, true}) {
    CHECK(is_close(composite::rope(heads, angle.cos(), angle.sin(), backward),
                   ops::rope(heads, angle.cos(), angle.sin(), backward)));
  }
}

TEST_CASE("the composites of attention equal the CPU's kernels") {
  const Tensor q = random_tensor({2, 9, 4, 16});
  const Tensor k = random_tensor({2, 13, 2, 16}, at::kFloat, 1.0, 2);
  const Tensor v = random_tensor({2, 13, 2, 16}, at::kFloat, 1.0, 3);
  const auto [out, log_sum_exp] = ops::attention(q, k, v);
  const auto [out2, log_sum_exp2] = composite::attention(q, k, v);
  CHECK(is_close(out2, out));
  CHECK(is_close(log_sum_exp2, log_sum_exp));
  const Tensor grad = random_tensor({2, 9, 4, 16}, at::kFloat, 1.0, 4);
  const auto [grad_q, grad_k, grad_v] = ops::attention_backward(grad, q, k, v, out, log_sum_exp);
  const auto [grad_q2, grad_k2, grad_v2] =
      composite::attention_backward(grad, q, k, v, out, log_sum_exp);
  CHECK(is_close(grad_q2, grad_q));
  CHECK(is_close(grad_k2, grad_k));
  CHECK(is_close(grad_v2, grad_v));
}

TEST_CASE("the composite of the loss equals the CPU's kernel, over two chunks") {
  const Tensor hidden = random_tensor({530, 24});
  const Tensor head = random_tensor({70, 24}, at::kFloat, 1.0, 2);
  Tensor targets = at::arange(530, at::kLong).remainder(70);
  targets[529] = -100;
  const auto [loss, grad_hidden, grad_head] = ops::cross_entropy(hidden, head, targets, true);
  const auto [loss2, grad_hidden2, grad_head2] =
      composite::cross_entropy(hidden, head, targets, true);
  CHECK(is_close(loss2, loss));
  CHECK(is_close(grad_hidden2, grad_hidden));
  CHECK(is_close(grad_head2, grad_head));
}

TEST_CASE("the composites of the optimizer equal the CPU's kernels") {
  Tensor master = random_tensor({100}), m = at::zeros({100}), v = at::zeros({100});
  Tensor weights = master.to(at::kBFloat16);
  Tensor master2 = master.clone(), m2 = m.clone(), v2 = v.clone(), weights2 = weights.clone();
  const Tensor grad = random_tensor({100}, at::kFloat, 1.0, 2);
  const AdamWOptions options{.lr = 1e-2, .weight_decay = 0.1, .step = 3, .grad_scale = 0.5};
  ops::adamw_(master, grad, m, v, weights, options);
  composite::adamw_(master2,
                    grad,
                    m2,
                    v2,
                    weights2,
                    options.lr,
                    options.beta1,
                    options.beta2,
                    options.eps,
                    options.weight_decay,
                    options.step,
                    options.grad_scale);
  CHECK(is_close(master2, master));
  CHECK(is_close(m2, m));
  CHECK(is_close(v2, v));
  CHECK(weights2.equal(master2.to(at::kBFloat16)));
  composite::accumulate_(master2, weights2);
  CHECK(distance(master2, values_of(master * 2)) < 1e-2);  // weights2 is bf16
  CHECK(is_close(composite::sum_of_squares(grad), ops::sum_of_squares(grad)));
}

/// Lets the kernels run on one instruction set, and on the best again at its end.
class OnlyTarget {
 public:
  explicit OnlyTarget(int64_t target) { choose(target); }
  ~OnlyTarget() { choose(0); }

 private:
  static void choose(int64_t targets) {
    hwy::SetSupportedTargetsForTest(targets);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

/// Results and gradients of every kernel of the model, end to end.
std::vector<Tensor> run_all_kernels(c10::ScalarType dtype) {
  const Tensor x = random_tensor({2, 40, 4 * 20}, dtype, 1.0, 1).requires_grad_();
  const Tensor weight = random_tensor({80}, dtype, 1.0, 2).requires_grad_();
  const Tensor angle = random_tensor({40, 10}, at::kFloat, 1.0, 3);
  const auto [y, sum] = add_rms_norm(x, x, weight, 1e-6);
  const Tensor q = apply_rope(y.view({2, 40, 4, 20}), angle.cos(), angle.sin());
  const Tensor k = rms_norm(q.slice(2, 0, 2), weight.slice(0, 0, 20), 1e-6);
  const Tensor out = attention(q, k, k).view({80, 80});
  const Tensor hidden = swiglu(out);  // [80,40]
  const Tensor head = random_tensor({77, 40}, dtype, 1.0, 4);
  const Tensor loss = cross_entropy_sum(hidden, head, at::arange(80, at::kLong).remainder(77));
  loss.backward();
  Tensor master = weight.detach().to(at::kFloat);
  Tensor m = at::zeros({80}), v = at::zeros({80}), weights = master.to(dtype);
  accumulate(m, weight.grad());
  adamw_step(master, m.clone(), m, v, weights, {.lr = 1e-2});
  return {y.detach(), out.detach(), loss.detach(), x.grad(), weight.grad(), master};
}

TEST_CASE("every instruction set of this machine computes the same up to rounding") {
  const std::vector<int64_t> targets = hwy::SupportedAndGeneratedTargets();
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const std::vector<Tensor> wanted = run_all_kernels(dtype);
    for (const int64_t target : targets) {
      CAPTURE(hwy::TargetName(target));
      CAPTURE(c10::toString(dtype));
      const OnlyTarget only(target);
      const std::vector<Tensor> actual = run_all_kernels(dtype);
      for (size_t i = 0; i < wanted.size(); ++i) {
        CAPTURE(i);
        // A chain of six kernels: each rounds its results, and later ones amplify that.
        CHECK(distance(actual[i], values_of(wanted[i])) < 10 * tolerance_of(dtype));
      }
    }
  }
}

TEST_CASE("every instruction set sums squares and quantises to the same bits") {
  const Tensor values = random_tensor({5003});
  const std::span<const float> numbers(values.data_ptr<float>(), 5003);
  const double wanted = sum_of_squares(values);
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    CAPTURE(hwy::TargetName(target));
    for (const int bits : {4, 8}) {
      const QuantisedVector best = quantise(numbers, bits);
      std::vector<float> best_out(5003), out(5003);
      dequantise(best, best_out);
      std::vector<uint8_t> best_line(line_bytes(5003, bits)), line(best_line.size());
      quantise_for_line(numbers, bits, best_line);
      const OnlyTarget only(target);
      quantise_for_line(numbers, bits, line);
      CHECK(line == best_line);
      const QuantisedVector quantised = quantise(numbers, bits);
      CHECK(quantised.payload == best.payload);
      CHECK(quantised.scales == best.scales);
      dequantise(quantised, out);
      CHECK(out == best_out);
      CHECK(sum_of_squares(values) == wanted);
    }
  }
}

}  // namespace
}  // namespace pelago::chips
