#include <doctest/doctest.h>

#include <limits>

#include "chips/kernels.h"
#include "chips/kernels_support.h"

namespace pelago::chips {
namespace {

TEST_CASE("adamw_step equals the paper's formulas over several steps, at odd lengths too") {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const int64_t num_values : {1, 15, 16, 67, 1000}) {
      CAPTURE(num_values);
      Tensor master = random_tensor({num_values}, at::kFloat, 0.1);
      Tensor m = at::zeros({num_values}), v = at::zeros({num_values});
      Tensor weights = dtype == at::kFloat ? master : master.to(dtype);
      std::vector<reference::AdamwState> wanted(static_cast<size_t>(num_values));
      for (size_t i = 0; i < wanted.size(); ++i) {
        wanted[i].master = master[static_cast<int64_t>(i)].item<float>();
      }
      for (int64_t step = 1; step <= 3; ++step) {
        const Tensor grad =
            random_tensor({num_values}, at::kFloat, 10.0, static_cast<uint64_t>(step));
        const AdamWOptions options{
            .lr = 1e-2, .weight_decay = 0.1, .step = step, .grad_scale = 1.0 / 64};
        adamw_step(master, grad, m, v, weights, options);
        const auto grads = values_of(grad);
        for (size_t i = 0; i < wanted.size(); ++i)
          wanted[i] = reference::adamw(wanted[i], grads[i], options);
      }
      reference::Values wanted_master, wanted_m, wanted_v;
      for (const auto& state : wanted) {
        wanted_master.push_back(state.master);
        wanted_m.push_back(state.m);
        wanted_v.push_back(state.v);
      }
      CHECK(distance(master, wanted_master) < 1e-5);  // f32 with a quotient of f32 sums
      CHECK(distance(m, wanted_m) < 1e-6);
      CHECK(distance(v, wanted_v) < 1e-6);
      CHECK(weights.equal(master.to(dtype)));
    }
  }
}

TEST_CASE("accumulate adds exactly what f32 addition adds") {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const int64_t num_values : {0, 1, 31, 32, 1003}) {
      Tensor sum = random_tensor({num_values}, at::kFloat, 1.0, 1);
      const Tensor grad = random_tensor({num_values}, dtype, 1.0, 2);
      const Tensor wanted = sum + grad.to(at::kFloat);
      accumulate(sum, grad);
      CHECK(sum.equal(wanted));
    }
  }
}

TEST_CASE("sum_of_squares is exact to f64 and the same bits on one thread and on two") {
  const int num_threads = at::get_num_threads();
  for (const int64_t num_values : {0, 1, 15, 1000, 300007}) {
    const Tensor values = random_tensor({num_values}, at::kFloat, 3.0);
    const double wanted = reference::sum_of_squares(values_of(values));
    at::set_num_threads(1);
    const double alone = sum_of_squares(values);
    at::set_num_threads(2);
    CHECK(sum_of_squares(values) == alone);
    CHECK(alone == doctest::Approx(wanted).epsilon(1e-12));
  }
  at::set_num_threads(num_threads);
}

TEST_CASE("sum_of_squares is not finite if one value is not, wherever it lies") {
  for (const float bad : {std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    for (const int64_t value_idx : {0, 500, 1002}) {
      Tensor values = random_tensor({1003});
      values[value_idx] = bad;
      CHECK(!std::isfinite(sum_of_squares(values)));
    }
  }
}

TEST_CASE("sum_of_squares does not overflow where f32 would") {
  CHECK(sum_of_squares(at::full({4}, 1e30F)) == doctest::Approx(4e60));
}

TEST_CASE("adamw_step refuses moments of another shape") {
  Tensor master = at::zeros({4}), m = at::zeros({4}), v = at::zeros({5});
  CHECK_THROWS_AS(adamw_step(master, at::zeros({4}), m, v, master, {}), c10::Error);
}

}  // namespace
}  // namespace pelago::chips
