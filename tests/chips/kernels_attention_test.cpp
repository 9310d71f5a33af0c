#include <doctest/doctest.h>

#include "chips/kernels.h"
#include "chips/kernels_support.h"

namespace pelago::chips {
namespace {

struct Inputs {
  Tensor q, k, v, grad_out;
};

Inputs inputs_of(const reference::HeadShape& shape, c10::ScalarType dtype) {
  const std::vector<int64_t> queries = {shape.batch, shape.tokens, shape.heads, shape.head_dim};
  const std::vector<int64_t> keys = {
      shape.batch, shape.all_tokens, shape.key_heads, shape.head_dim};
  return {random_tensor(queries, dtype, 1.0, 1).requires_grad_(),
          random_tensor(keys, dtype, 1.0, 2).requires_grad_(),
          random_tensor(keys, dtype, 1.0, 3).requires_grad_(),
          random_tensor(queries, dtype, 1.0, 4)};
}

// T around block borders, T_new < T_all, one query head a key head, several, and all on one; head
// widths that are not a multiple of a vector.
constexpr reference::HeadShape kShapes[] = {
    {.batch = 1, .tokens = 1, .all_tokens = 1, .heads = 1, .key_heads = 1, .head_dim = 16},
    {.batch = 2, .tokens = 7, .all_tokens = 7, .heads = 2, .key_heads = 2, .head_dim = 8},
    {.batch = 2, .tokens = 1, .all_tokens = 77, .heads = 4, .key_heads = 2, .head_dim = 64},
    {.batch = 1, .tokens = 3, .all_tokens = 50, .heads = 6, .key_heads = 2, .head_dim = 20},
    {.batch = 1, .tokens = 65, .all_tokens = 65, .heads = 3, .key_heads = 1, .head_dim = 64},
    {.batch = 2, .tokens = 130, .all_tokens = 130, .heads = 4, .key_heads = 2, .head_dim = 32},
    {.batch = 1, .tokens = 63, .all_tokens = 200, .heads = 2, .key_heads = 1, .head_dim = 128},
    {.batch = 1, .tokens = 34, .all_tokens = 34, .heads = 2, .key_heads = 2, .head_dim = 33},
};

TEST_CASE("attention and its gradients equal their twin in every shape and dtype") {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const auto& shape : kShapes) {
      CAPTURE(c10::toString(dtype));
      CAPTURE(shape.tokens);
      CAPTURE(shape.all_tokens);
      CAPTURE(shape.head_dim);
      auto [q, k, v, grad_out] = inputs_of(shape, dtype);
      const Tensor out = attention(q, k, v);
      out.backward(grad_out);
      CHECK((out.scalar_type() == dtype));
      const auto wanted = reference::attention(values_of(q), values_of(k), values_of(v), shape);
      const auto grads = reference::attention_backward(
          values_of(grad_out), values_of(q), values_of(k), values_of(v), shape);
      // Probabilities and their gradients pass through the matmuls' dtype: twice its rounding.
      const double tolerance = 2 * tolerance_of(dtype);
      CHECK(distance(out, wanted) < tolerance);
      // One key alone has probability 1: the gradients of its score are 0 but for rounding.
      CHECK(distance(k.grad(), grads.k, 1.0) < tolerance);
      CHECK(distance(v.grad(), grads.v) < tolerance);
      CHECK(distance(q.grad(), grads.q, 1.0) < tolerance);
    }
  }
}

TEST_CASE("a query's output does not depend on the keys after it, whatever they hold") {
  const reference::HeadShape shape{
      .batch = 1, .tokens = 80, .all_tokens = 80, .heads = 2, .key_heads = 1, .head_dim = 16};
  auto [q, k, v, grad_out] = inputs_of(shape, at::kBFloat16);
  const at::NoGradGuard no_grad;
  const Tensor out = attention(q, k, v);
  k.slice(1, 50).fill_(1e4);
  v.slice(1, 50).fill_(-1e4);
  CHECK(attention(q, k, v).slice(1, 0, 50).equal(out.slice(1, 0, 50)));
}

TEST_CASE("attention of the last queries equals the last rows of attention of all") {
  const reference::HeadShape shape{
      .batch = 2, .tokens = 70, .all_tokens = 70, .heads = 4, .key_heads = 2, .head_dim = 32};
  auto [q, k, v, grad_out] = inputs_of(shape, at::kFloat);
  const at::NoGradGuard no_grad;
  const Tensor all = attention(q, k, v);
  CHECK(distance(attention(q.slice(1, 69), k, v), values_of(all.slice(1, 69))) < 2e-6);
  CHECK(distance(attention(q.slice(1, 30), k, v), values_of(all.slice(1, 30))) < 2e-6);
}

TEST_CASE("attention takes q, k and v as slices of one matmul's output") {
  const Tensor wide = random_tensor({2, 9, 8 * 16}, at::kBFloat16);
  const Tensor q = wide.slice(2, 0, 64).view({2, 9, 4, 16});
  const Tensor k = wide.slice(2, 64, 96).view({2, 9, 2, 16});
  const Tensor v = wide.slice(2, 96, 128).view({2, 9, 2, 16});
  CHECK(attention(q, k, v).equal(attention(q.contiguous(), k.contiguous(), v.contiguous())));
}

TEST_CASE("scores too large for exp do not overflow") {
  const Tensor q = random_tensor({1, 20, 1, 16}, at::kFloat, 100.0, 1);
  const Tensor out = attention(q, q, at::ones_like(q));
  CHECK(at::allclose(out, at::ones_like(out)));
}

TEST_CASE("attention gives the same bits on one thread and on two") {
  const reference::HeadShape shape{
      .batch = 2, .tokens = 100, .all_tokens = 100, .heads = 4, .key_heads = 2, .head_dim = 64};
  const int num_threads = at::get_num_threads();
  std::vector<Tensor> results;
  for (const int count : {1, 2}) {
    at::set_num_threads(count);
    auto [q, k, v, grad_out] = inputs_of(shape, at::kBFloat16);
    const Tensor out = attention(q, k, v);
    out.backward(grad_out);
    results.push_back(
        at::cat({out.flatten(), q.grad().flatten(), k.grad().flatten(), v.grad().flatten()}));
  }
  at::set_num_threads(num_threads);
  CHECK(results[0].equal(results[1]));
}

TEST_CASE("attention refuses heads that do not divide by naming both shapes") {
  CHECK_THROWS_WITH_AS(
      attention(at::ones({1, 2, 3, 4}), at::ones({1, 2, 2, 4}), at::ones({1, 2, 2, 4})),
      doctest::Contains("q [1, 2, 3, 4] does not fit k [1, 2, 2, 4]"),
      c10::Error);
}

}  // namespace
}  // namespace pelago::chips
