// Pelago's own operators on emulated chips: same values as on the CPU, charged as a chip with
// kernels of its own would need.
#include <doctest/doctest.h>

#include <ctime>

#include "chips/device.h"
#include "chips/kernels.h"
#include "chips/torch.h"

namespace pelago::chips {
namespace {

constexpr int64_t kBatch = 2, kTokens = 16, kHeads = 4, kHeadDim = 32, kHidden = 128, kVocab = 96;

std::unique_ptr<Device> open_unpaced(const std::string& chip) {
  static const Catalogue catalogue = Catalogue::built_in();
  return open_device("emulated:" + chip, catalogue, {.slowdown = 1e-6});
}

/// One block of a transformer with its loss: the gradients of everything trained.
std::vector<Tensor> train_block(c10::Device device, c10::ScalarType dtype) {
  torch::manual_seed(11);
  const auto parameter = [&](at::IntArrayRef sizes) {
    return (torch::randn(sizes) * 0.1).to(device, dtype).requires_grad_(true);
  };
  const Tensor x = parameter({kBatch, kTokens, kHidden});
  const Tensor norm = torch::ones({kHidden}, at::device(device).dtype(dtype)).requires_grad_(true);
  const Tensor qkv = parameter({3 * kHidden, kHidden});
  const Tensor gate_up = parameter({2 * kHidden, kHidden});
  const Tensor head = parameter({kVocab, kHidden});
  const Tensor targets = torch::randint(0, kVocab, {kBatch * kTokens}, at::kLong).to(device);
  const Tensor angles = torch::rand({kTokens, kHeadDim / 2}).to(device);
  const std::vector<int64_t> heads = {kBatch, kTokens, kHeads, kHeadDim};
  const auto parts = torch::linear(rms_norm(x, norm, 1e-5), qkv).chunk(3, -1);
  const Tensor q = apply_rope(parts[0].reshape(heads), angles.cos(), angles.sin());
  const Tensor k = apply_rope(parts[1].reshape(heads), angles.cos(), angles.sin());
  const Tensor mixed = attention(q, k, parts[2].reshape(heads)).reshape(x.sizes());
  const auto [y, sum] = add_rms_norm(mixed, x, norm, 1e-5);
  const Tensor hidden = sum + swiglu(torch::linear(y, gate_up));
  const Tensor loss = cross_entropy_sum(hidden.view({-1, kHidden}), head, targets);
  loss.backward();
  return {loss, x.grad(), norm.grad(), qkv.grad(), gate_up.grad(), head.grad()};
}

TEST_CASE("a block on an emulated bf16 chip has the gradients of the CPU, bit for bit") {
  const auto device = open_unpaced("910b");
  const auto expected = train_block(at::kCPU, at::kBFloat16);
  const auto found = train_block(device->torch_device(), at::kBFloat16);
  for (size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i);
    CHECK(found[i].cpu().equal(expected[i]));
  }
}

TEST_CASE("a block on an emulated fp16 chip has gradients near those of f32") {
  const auto device = open_unpaced("910a");
  const auto expected = train_block(at::kCPU, at::kFloat);
  const auto found = train_block(device->torch_device(), at::kHalf);
  CHECK((found[0].scalar_type() == at::kFloat));
  for (size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i);
    const Tensor error = (found[i].cpu().to(at::kFloat) - expected[i]).norm();
    // Weights and activations rounded to 11 bits: 2^-11 each, a dozen of them in a row.
    CHECK(error.item<float>() <= 0.01F * expected[i].norm().item<float>());
  }
}

TEST_CASE("attention and loss are charged by the arithmetic that a causal model needs") {
  const auto device = open_unpaced("a100");
  const auto options = at::device(device->torch_device()).dtype(at::kBFloat16);
  const Tensor q = torch::ones({kBatch, kTokens, kHeads, kHeadDim}, options);
  device->reset_stats();
  attention(q, q, q);
  CHECK(device->stats().flops == 4.0 * kBatch * kHeads * kHeadDim * (kTokens * (kTokens + 1) / 2));
  const Tensor hidden = torch::ones({10, kHidden}, options).requires_grad_(true);
  const Tensor head = torch::ones({kVocab, kHidden}, options);
  const Tensor targets = torch::zeros({10}, options.dtype(at::kLong));
  device->reset_stats();
  const Tensor loss = cross_entropy_sum(hidden, head, targets);
  CHECK(device->stats().flops == 6.0 * 10 * kHidden * kVocab);
  {
    const torch::NoGradGuard no_grad;
    device->reset_stats();
    cross_entropy_sum(hidden, head, targets);
    CHECK(device->stats().flops == 2.0 * 10 * kHidden * kVocab);
  }
}

TEST_CASE("an operator of the emulator costs the host only a few microseconds") {
  const auto device = open_unpaced("a100");
  const auto cpu_us = [](const Tensor& x) {
    constexpr int kRepeats = 2000;
    const torch::NoGradGuard no_grad;
    double best_us = 1e9;
    for (int attempt = 0; attempt < 5;
         ++attempt) {  // of processor time; the least disturbed counts
      timespec begin{};
      timespec end{};
      clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
      for (int i = 0; i < kRepeats; ++i) x.add_(1);
      clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
      best_us = std::min(best_us,
                         (1e6 * static_cast<double>(end.tv_sec - begin.tv_sec) +
                          1e-3 * static_cast<double>(end.tv_nsec - begin.tv_nsec)) /
                             kRepeats);
    }
    return best_us;
  };
  const double plain_us = cpu_us(torch::ones({64}));
  const double emulated_us = cpu_us(torch::ones({64}, at::device(device->torch_device())));
  MESSAGE("add_ on the CPU ", plain_us, " us, on the emulated chip ", emulated_us, " us");
  CHECK(emulated_us - plain_us < 10);  // 3 on a quiet machine
}

}  // namespace
}  // namespace pelago::chips
