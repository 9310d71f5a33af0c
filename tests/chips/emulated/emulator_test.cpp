#include <doctest/doctest.h>

#include <ctime>
#include <functional>

#include "base/clock.h"
#include "base/error.h"
#include "chips/chips_support.h"
#include "chips/device.h"
#include "chips/emulated/error_of.h"
#include "chips/emulator/paced_clock.h"
#include "chips/kernels.h"
#include "chips/tensor.h"
#include "chips/torch.h"
#include "patience.h"

namespace pelago::chips {
namespace {

/// An emulated chip so fast that its pace is never felt.
std::unique_ptr<Device> open_unpaced(const std::string& chip,
                                     std::optional<double> memory_bytes = {}) {
  return open_device(
      "emulated:" + chip, catalogue(), {.slowdown = 1e-6, .memory_bytes = memory_bytes});
}

/// A small network's loss and gradients on a device.
std::vector<Tensor> train_once(c10::Device device, c10::ScalarType dtype) {
  torch::manual_seed(7);
  const auto parameter = [&](at::IntArrayRef sizes) {
    return (torch::randn(sizes) * 0.3).to(device, dtype).requires_grad_(true);
  };
  const Tensor table = parameter({13, 8});
  const Tensor weight = parameter({24, 8});
  const Tensor bias = parameter({24});
  const Tensor tokens = torch::randint(0, 13, {2, 5}, at::kLong).to(device);
  const Tensor targets = torch::randint(0, 24, {10}, at::kLong).to(device);
  const Tensor hidden = torch::embedding(table, tokens);                   // [2,5,8]
  const Tensor logits = torch::linear(torch::silu(hidden), weight, bias);  // [2,5,24]
  const Tensor chosen = logits.view({10, 24}).index({targets.remainder(10)}).softmax(-1);
  const Tensor log_probs = logits.to(at::kFloat).view({10, 24}).log_softmax(-1);
  const Tensor loss = -log_probs.gather(1, targets.unsqueeze(1)).sum() +
                      chosen.to(at::kFloat).pow(2).mean() +
                      logits.to(at::kFloat).masked_fill(logits > 1, 0).select(0, 1).t().sum();
  loss.backward();
  return {loss, table.grad(), weight.grad(), bias.grad()};
}

TEST_CASE("autograd on an emulated chip gives the values of the CPU, bit for bit in f32") {
  const auto device = open_unpaced("a100");
  const auto expected = train_once(at::kCPU, at::kFloat);
  const auto found = train_once(device->torch_device(), at::kFloat);
  for (size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i);
    CHECK((found[i].device() == device->torch_device()));
    CHECK(found[i].cpu().equal(expected[i]));
  }
}

TEST_CASE("autograd in bf16 gives the values of the CPU") {
  const auto device = open_unpaced("h20");
  const auto expected = train_once(at::kCPU, at::kBFloat16);
  const auto found = train_once(device->torch_device(), at::kBFloat16);
  for (size_t i = 0; i < expected.size(); ++i) CHECK(found[i].cpu().equal(expected[i]));
}

TEST_CASE("a chip with fp16 only trains in fp16 near the values of f32 and refuses bf16") {
  const auto device = open_unpaced("910a");
  CHECK((device->training_dtype() == at::kHalf));
  const auto expected = train_once(at::kCPU, at::kFloat);
  const auto found = train_once(device->torch_device(), at::kHalf);
  // fp16 keeps 11 bits; a few roundings in a row lose about three of them.
  for (size_t i = 0; i < expected.size(); ++i) {
    CHECK(found[i].cpu().to(at::kFloat).allclose(expected[i], 1e-2, 1e-2));
    CHECK((found[i].scalar_type() == (i == 0 ? at::kFloat : at::kHalf)));
  }
  const auto options = at::device(device->torch_device());
  for (const auto& action : std::vector<std::function<void()>>{
           [&] { torch::zeros({2}, options.dtype(at::kBFloat16)); },
           [&] { torch::zeros({2}, options).to(at::kBFloat16); },
           [&] { torch::zeros({2}, at::kBFloat16).to(device->torch_device()); }}) {
    CHECK(has(error_of(action), "huawei-910a has no bf16"));
  }
}

TEST_CASE("in-place, out, view, list and resizing operators work on the chip's own memory") {
  const auto device = open_unpaced("a100");
  const auto options = at::device(device->torch_device());
  Tensor x = torch::arange(12, options.dtype(at::kFloat)).view({3, 4});
  x.add_(1).mul_(2);
  x.select(0, 1).zero_();
  const Tensor expected =
      at::tensor({2., 4., 6., 8., 0., 0., 0., 0., 18., 20., 22., 24.}).view({3, 4});
  CHECK(x.cpu().equal(expected.to(at::kFloat)));
  Tensor sum = torch::empty({0}, options.dtype(at::kFloat));
  at::sum_out(sum, x, 1);
  CHECK(sum.cpu().equal(expected.sum(1).to(at::kFloat)));
  sum.resize_({100}).fill_(3);
  CHECK(sum.sum().item<float>() == 300.0F);
  const auto parts = torch::cat({x, x}, 0).split(2);
  CHECK(parts.size() == 3);
  CHECK(parts[2].cpu().equal(torch::cat({expected.slice(0, 1), {}}, 0).to(at::kFloat)));
  CHECK(torch::stack({x[0], x[2]})
            .t()
            .contiguous()
            .cpu()
            .equal(torch::stack({expected[0], expected[2]}).t().to(at::kFloat)));
  CHECK(x.nonzero().size(0) == 8);
  CHECK(torch::where(x > 5, x, torch::zeros_like(x)).sum().item<float>() == 98.0F);
}

TEST_CASE("a tensor of the host among tensors of the chip is refused as on a real chip") {
  const auto device = open_unpaced("a100");
  const Tensor on_chip = torch::ones({4}, device->torch_device());
  CHECK(has(error_of([&] { on_chip + torch::ones({4}); }), "xpected all tensors"));
}

TEST_CASE("memory is counted while it is used and given back after") {
  const auto device = open_unpaced("a100");
  const int64_t before_bytes = device->stats().used_bytes;
  {
    const Tensor x = torch::ones({256, 1024}, at::device(device->torch_device()));
    CHECK(device->stats().used_bytes == before_bytes + (1 << 20));
    const Tensor view = x.view({-1}).slice(0, 0, 1000);
    CHECK(device->stats().used_bytes == before_bytes + (1 << 20));
    const Tensor y = x + x;
    CHECK(device->stats().used_bytes == before_bytes + (2 << 20));
  }
  CHECK(device->stats().used_bytes == before_bytes);
  CHECK(device->stats().peak_bytes >= before_bytes + (2 << 20));
  device->reset_stats();
  CHECK(device->stats().peak_bytes == before_bytes);
}

TEST_CASE("exhausted memory is an error that names chip, size, use and need, and work goes on") {
  const auto device = open_unpaced("910b", 3.0 * (1 << 20));
  const Tensor x = torch::ones({256, 1024}, at::device(device->torch_device()));
  const std::string error = error_of([&] {
    const Tensor y = x + x;
    const Tensor z = torch::cat({y, y});
  });
  for (const char* part : {"huawei-910b2", "out of memory", "3 MiB", "2 MiB are in use"}) {
    CAPTURE(error);
    CHECK(has(error, part));
  }
  CHECK_THROWS_AS(torch::ones({1 << 20}, at::device(device->torch_device())),
                  c10::OutOfMemoryError);
  CHECK((x + x).sum().item<float>() == 2.0F * (1 << 18));
}

TEST_CASE("one process has one emulated chip at a time") {
  const auto device = open_unpaced("a100");
  std::string message;
  try {
    open_unpaced("h20");
  } catch (const Failure& failure) {
    message = failure.what();
  }
  CHECK(has(message, "this process has an emulated chip open"));
}

TEST_CASE("work is enqueued at once and takes the chip's time by the next synchronisation") {
  // A matmul of 128^3 is 4.2 MFLOP: 16 ns of an A100's 264 TFLOP/s, 98 ns of its memory, and 2 us
  // to launch. At a slowdown of 1000 that is 5.1 ms each; the host needs some 0.1 ms.
  CHECK(testing::holds_at_some_pace([](double scale) {
    const auto device = open_device("emulated:a100", catalogue(), {.slowdown = 1000 * scale});
    const auto options = at::device(device->torch_device()).dtype(at::kBFloat16);
    const Tensor x = torch::ones({128, 128}, options);
    device->synchronize();
    device->reset_stats();
    const double start_s = steady_now_s();
    Tensor y = x;
    for (int i = 0; i < 10; ++i) y = torch::mm(y, x);
    const double enqueued_s = steady_now_s() - start_s;
    device->synchronize();
    const double done_s = steady_now_s() - start_s;
    const DeviceStats stats = device->stats();
    CHECK(stats.flops == 10.0 * 2 * 128 * 128 * 128);
    CHECK(stats.device_busy_s ==
          doctest::Approx(scale * 10 * 1000 * (2e-6 + 3 * 32768 / 2.039e12)));
    CHECK(done_s >= stats.device_busy_s * 0.999);
    CHECK(stats.host_busy_s > 0);
    return enqueued_s < stats.device_busy_s && stats.late_s == 0 && stats.slept_s > 0;
  }));
}

TEST_CASE("a large matmul is charged by arithmetic and reading a value waits for the chip") {
  // 2 * 512^3 FLOP at 142 TFLOP/s are 1.89 us, more than its 1.5 MiB at 4000 GB/s; 2 us to launch.
  const auto device = open_device("emulated:h20", catalogue(), {.slowdown = 1000});
  const Tensor x = torch::ones({512, 512}, at::kBFloat16).to(device->torch_device());
  device->synchronize();
  device->reset_stats();
  const double start_s = steady_now_s();
  const Tensor y = torch::mm(x, x);
  const double busy_s = device->stats().device_busy_s;
  CHECK(busy_s == doctest::Approx(1000 * (2e-6 + 2.0 * 512 * 512 * 512 / 142e12)));
  CHECK(y.select(0, 0).select(0, 0).item<float>() == 512.0F);
  CHECK(steady_now_s() - start_s >= busy_s * 0.999);
}

TEST_CASE("a clock counts lateness only at synchronisation and stands still while idle") {
  emulator::PacedClock clock;
  CHECK(clock.synchronize(5.0) == 0);  // idle: nothing to wait for, nobody is late
  clock.begin(10.0);
  clock.charge(2.0);
  clock.charge(1.0);
  CHECK(clock.synchronize(10.5) == doctest::Approx(2.5));
  CHECK(clock.late_s() == 0);
  CHECK(clock.is_idle());
  clock.begin(20.0);
  clock.charge(1.0);
  CHECK(clock.synchronize(21.5) == 0);
  CHECK(clock.late_s() == doctest::Approx(0.5));
  CHECK(clock.busy_s() == doctest::Approx(4.0));
  CHECK(clock.slept_s() == doctest::Approx(2.5));
}

// Pelago's own operators, charged as a chip with kernels of its own would need.
constexpr int64_t kBatch = 2, kTokens = 16, kHeads = 4, kHeadDim = 32, kHidden = 128, kVocab = 96;

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

TEST_CASE("an operator of the emulator costs the host microseconds, not milliseconds") {
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
  CHECK(emulated_us - plain_us < 100);  // 3 on a quiet machine
}

}  // namespace
}  // namespace pelago::chips
