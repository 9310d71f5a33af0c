#include <doctest/doctest.h>

#include <limits>

#include "chips/kernels.h"
#include "chips/kernels_support.h"

namespace pelago::chips {
namespace {

std::vector<int64_t> numbers_of(const Tensor& targets) {
  return {targets.data_ptr<int64_t>(), targets.data_ptr<int64_t>() + targets.numel()};
}

Tensor targets_of(int64_t num_tokens, int64_t vocab) {
  auto generator = at::detail::createCPUGenerator(9);
  Tensor targets = at::randint(vocab, {num_tokens}, generator, at::kLong);
  targets.slice(0, 0, num_tokens, 5).fill_(-100);
  return targets;
}

TEST_CASE("the loss and its gradients equal their twin, over several chunks too") {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const auto& [num_tokens, width, vocab] :
         {std::array<int64_t, 3>{1, 8, 3}, {2, 16, 5}, {33, 24, 70}, {600, 16, 131}}) {
      CAPTURE(c10::toString(dtype));
      CAPTURE(num_tokens);
      const Tensor hidden = random_tensor({num_tokens, width}, dtype, 1.0, 1).requires_grad_();
      const Tensor head = random_tensor({vocab, width}, dtype, 0.5, 2).requires_grad_();
      const Tensor targets = targets_of(num_tokens, vocab);
      const Tensor loss = cross_entropy_sum(hidden, head, targets);
      loss.backward();
      const auto wanted =
          reference::cross_entropy(values_of(hidden), values_of(head), numbers_of(targets), width);
      CHECK((loss.scalar_type() == at::kFloat));
      CHECK(loss.dim() == 0);
      // The logits are rounded to the matmul's dtype before the softmax, in bf16 by up to 2^-9 of
      // a logit of about 5; a sum over tokens averages that out.
      CHECK(loss.item<double>() ==
            doctest::Approx(wanted.loss).epsilon(dtype == at::kFloat ? 1e-6 : 1e-2));
      const double tolerance = dtype == at::kFloat ? 1e-5 : 2e-2;
      CHECK(distance(hidden.grad(), wanted.grad_hidden) < tolerance);
      CHECK(distance(head.grad(), wanted.grad_head) < tolerance);
    }
  }
}

TEST_CASE("a scaled loss scales its gradients") {
  const Tensor targets = targets_of(10, 20);
  Tensor hidden = random_tensor({10, 8}).requires_grad_();
  Tensor head = random_tensor({20, 8}, at::kFloat, 1.0, 2).requires_grad_();
  cross_entropy_sum(hidden, head, targets).backward();
  const Tensor grad_hidden = hidden.grad().clone(), grad_head = head.grad().clone();
  hidden.mutable_grad().zero_();
  head.mutable_grad().zero_();
  (cross_entropy_sum(hidden, head, targets) * 8).backward();
  CHECK(hidden.grad().equal(grad_hidden * 8));
  CHECK(head.grad().equal(grad_head * 8));
}

TEST_CASE("a scaled fp16 loss keeps gradients that are too small for fp16 unscaled") {
  const Tensor hidden = at::full({1, 8}, 1e-4, at::kHalf).requires_grad_();
  const Tensor head = at::zeros({4096, 8}, at::kHalf).requires_grad_();
  (cross_entropy_sum(hidden, head, at::zeros({1}, at::kLong)) * 4096).backward();
  // 1 / 4096 of hidden, times the scale: 2.4e-8 before, below fp16's smallest number.
  CHECK((head.grad().scalar_type() == at::kHalf));
  CHECK(at::allclose(head.grad().slice(0, 1).to(at::kFloat), at::full({4095, 8}, 1e-4), 1e-2));
}

TEST_CASE("the loss and its gradients are the same bits on one thread and on two") {
  const int num_threads = at::get_num_threads();
  std::vector<Tensor> results;
  for (const int count : {1, 2}) {
    at::set_num_threads(count);
    const Tensor hidden = random_tensor({700, 32}).requires_grad_();
    const Tensor head = random_tensor({300, 32}, at::kFloat, 1.0, 2).requires_grad_();
    const Tensor loss = cross_entropy_sum(hidden, head, targets_of(700, 300));
    loss.backward();
    results.push_back(
        at::cat({loss.view({1}), hidden.grad().flatten(), head.grad().flatten()}).detach());
  }
  at::set_num_threads(num_threads);
  CHECK(results[0].equal(results[1]));
}

TEST_CASE("targets that all count for nothing give loss 0 and gradients 0") {
  const Tensor hidden = random_tensor({6, 8}).requires_grad_();
  const Tensor head = random_tensor({20, 8}).requires_grad_();
  const Tensor loss = cross_entropy_sum(hidden, head, at::full({6}, -100, at::kLong));
  loss.backward();
  CHECK(loss.item<float>() == 0);
  CHECK(hidden.grad().abs().max().item<float>() == 0);
  CHECK(head.grad().abs().max().item<float>() == 0);
}

TEST_CASE("without gradients the loss is the same number") {
  const Tensor targets = targets_of(40, 30);
  const Tensor hidden = random_tensor({40, 8}, at::kBFloat16).requires_grad_();
  const Tensor head = random_tensor({30, 8}, at::kBFloat16, 1.0, 2);
  const float with_grad = cross_entropy_sum(hidden, head, targets).item<float>();
  const at::NoGradGuard no_grad;
  CHECK(cross_entropy_sum(hidden, head, targets).item<float>() == with_grad);
}

TEST_CASE("a logit that is not finite makes a loss that is not finite") {
  Tensor hidden = random_tensor({5, 8});
  hidden[3][2] = std::numeric_limits<float>::quiet_NaN();
  const Tensor head = random_tensor({20, 8}, at::kFloat, 1.0, 2);
  CHECK(!std::isfinite(cross_entropy_sum(hidden, head, at::ones({5}, at::kLong)).item<float>()));
}

TEST_CASE("a target outside the vocabulary is refused") {
  const Tensor hidden = random_tensor({2, 8});
  CHECK_THROWS_AS(cross_entropy_sum(hidden, hidden, at::full({2}, 2, at::kLong)), c10::Error);
  CHECK_THROWS_AS(cross_entropy_sum(hidden, hidden, at::full({2}, -1, at::kLong)), c10::Error);
}

}  // namespace
}  // namespace pelago::chips
