#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <utility>

#include "chips/chips_support.h"
#include "chips/device.h"
#include "chips/emulated/faults.h"
#include "chips/kernels.h"
#include "chips/kernels_support.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace {

using Shape = std::pair<int64_t, int64_t>;
const Shape kShapes[] = {{24, 24}, {40, 16}, {16, 40}, {1, 9}, {9, 1}};
const MuonOptions kOptions{.lr = 1e-2, .weight_decay = 0.1, .grad_scale = 1.0 / 64};

/// A matrix under Muon on a device; weights are its own in 16 bits, else the master.
struct Stepped {
  Stepped(Shape shape, at::ScalarType dtype, c10::Device device)
      : initial(random_tensor({shape.first, shape.second}, at::kFloat, 0.1)),
        master(initial.to(device).clone()),
        m(at::zeros_like(master)),
        weights(dtype == at::kFloat ? master : master.to(dtype)) {}

  void step(uint64_t seed) {
    const Tensor grad = random_tensor(master.sizes(), at::kFloat, 10.0, seed);
    muon_step(master, grad.to(master.device()), m, weights, kOptions);
  }
  Tensor initial, master, m, weights;  // [R,C]
};

/// The same steps in f64.
reference::MuonState wanted_after(const Tensor& initial, int num_steps) {
  const reference::Values start = values_of(initial);
  reference::MuonState state{start, reference::Values(start.size())};
  for (int i = 1; i <= num_steps; ++i) {
    const Tensor grad = random_tensor(initial.sizes(), at::kFloat, 10.0, static_cast<uint64_t>(i));
    state = reference::muon(std::move(state), values_of(grad), initial.size(0), kOptions);
  }
  return state;
}

/// How far masters moved, and what they should have moved by: a step's error hides behind a master.
double step_distance(const Stepped& actual, const reference::MuonState& wanted) {
  reference::Values moved = wanted.master;
  const reference::Values start = values_of(actual.initial);
  for (size_t i = 0; i < moved.size(); ++i) moved[i] -= start[i];
  return distance(actual.master.cpu() - actual.initial, moved);
}

TEST_CASE("muon_step equals plain loops in f64, whichever side of the matrix is longer") {
  const auto emulated = open_device("emulated:a100", catalogue(), {.slowdown = 1e-6});
  for (const c10::Device device : {c10::Device(at::kCPU), emulated->torch_device()}) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      for (const Shape& shape : kShapes) {
        CAPTURE(shape.first);
        CAPTURE(shape.second);
        CAPTURE(dtype == at::kFloat);
        Stepped actual(shape, dtype, device);
        for (uint64_t step = 1; step <= 3; ++step) actual.step(step);
        const reference::MuonState wanted = wanted_after(actual.initial, 3);
        CHECK(distance(actual.m.cpu(), wanted.m) < 1e-6);
        // The iterations make small singular values 485 times larger, and their rounding with
        // them: of 2^-24 in f32, of 2^-9 in bf16.
        CHECK(step_distance(actual, wanted) < (dtype == at::kFloat ? 5e-5 : 0.15));
        CHECK(actual.weights.equal(actual.master.to(dtype)));
      }
    }
  }
}

TEST_CASE("muon_step gives the bits of the CPU on an emulated chip, whose time it takes") {
  const auto chip = open_device("emulated:a100", catalogue(), {.slowdown = 1e-6});
  Stepped here({48, 32}, at::kBFloat16, at::kCPU);
  Stepped there({48, 32}, at::kBFloat16, chip->torch_device());
  chip->reset_stats();
  here.step(1);
  there.step(1);
  CHECK(there.master.cpu().equal(here.master));
  // Five times x x', its square, and the product of both with x; and no matrix product beside them.
  CHECK(chip->stats().flops == 5.0 * 2 * 32 * 32 * (2 * 48 + 32));
  CHECK(chip->stats().device_busy_s > 0);
}

TEST_CASE("muon_step makes all singular values of a step nearly equal") {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const Shape& shape : {Shape{64, 64}, Shape{96, 32}, Shape{32, 96}}) {
      Tensor master = at::zeros({shape.first, shape.second});
      Tensor m = at::zeros_like(master), weights = master.to(dtype);
      const Tensor grad = random_tensor(master.sizes(), at::kFloat, 3.0);
      muon_step(master, grad, m, weights, {.lr = 1});
      const double scale =
          0.2 * std::sqrt(static_cast<double>(std::max(shape.first, shape.second)));
      const Tensor singular = at::linalg_svdvals(master) / scale;
      CAPTURE(shape.first);
      CHECK(singular.max().item<double>() < 1.3);
      // Of a square random matrix some singular values are a thousandth of the largest.
      const double least = shape.first == shape.second ? 0.01 : 0.6;
      CHECK(singular.min().item<double>() > least);
      CHECK(at::quantile(singular, 0.1).item<double>() > 0.6);
    }
  }
}

TEST_CASE("without any gradient muon_step changes the weights by their decay alone") {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    Tensor master = random_tensor({8, 12});
    Tensor m = at::zeros_like(master), weights = master.to(dtype);
    const Tensor wanted = master * (1 - 0.5 * 0.1);
    muon_step(master, at::zeros_like(master), m, weights, {.lr = 0.5, .weight_decay = 0.1});
    CHECK(master.equal(wanted));
    CHECK(weights.equal(wanted.to(dtype)));
    CHECK(m.abs().max().item<float>() == 0);
  }
}

TEST_CASE("momentum that was damaged in memory is forgotten, the rest of it is not") {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(),
                          std::numeric_limits<float>::infinity(),
                          -1e30F,
                          81.0F}) {  // the bound: 4 times 1 / (1 - 0.95)
    Tensor master = at::zeros({6, 10});
    Tensor m = random_tensor({6, 10}, at::kFloat, 0.1);
    const Tensor sound = m.clone();
    sound[2][3] = 0;
    m[2][3] = bad;
    const Tensor grad = random_tensor({6, 10}, at::kFloat, 0.1, 2);
    muon_step(master, grad, m, master, {.lr = 1e-2, .grad_norm_max = 1});
    CHECK(m.allclose(sound * 0.95 + grad));
    CHECK(master.abs().max().item<double>() < 1e-2 * 0.2 * std::sqrt(10.0) * 1.3);
    CHECK(master.abs().max().item<double>() > 0);
  }
}

TEST_CASE("a product of muon_step that goes wrong does not reach the weights") {
  const auto chip = open_device("emulated:a100", catalogue(), {.slowdown = 1e-6});
  Stepped matrix({16, 24}, at::kBFloat16, chip->torch_device());
  order_fault(*chip, parse_fault("wrong=1e20@op=1"));
  matrix.step(1);
  const Tensor decayed = matrix.initial * (1 - kOptions.lr * kOptions.weight_decay);
  CHECK(matrix.master.cpu().equal(decayed));
}

TEST_CASE("muon_step refuses what is no matrix, and matrices of two shapes") {
  const auto refuses = [](Tensor master, const Tensor& grad, Tensor m, Tensor weights) {
    CHECK_THROWS_AS(muon_step(master, grad, m, weights, {.lr = 1e-2}), c10::Error);
  };
  const Tensor matrix = at::zeros({4, 6});
  refuses(at::zeros({24}), at::zeros({24}), at::zeros({24}), at::zeros({24}));
  refuses(matrix, at::zeros({6, 4}), at::zeros({4, 6}), at::zeros({4, 6}));
  refuses(matrix, matrix, at::zeros({4, 5}), at::zeros({4, 6}));
  refuses(matrix, matrix, at::zeros({4, 6}), at::zeros({24}));
  refuses(matrix, at::zeros({6, 4}).t(), at::zeros({4, 6}), at::zeros({4, 6}));
}

}  // namespace
}  // namespace pelago::chips
