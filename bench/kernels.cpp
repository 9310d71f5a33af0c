// How close do the kernels come to what the machine can do? Those that multiply are measured in
// GFLOP/s beside a large bf16 matmul, those that move memory in GB/s beside a copy of vectors too
// large for any cache; all on one core, in one run. Bytes and FLOPs are those that the arithmetic
// needs: each operand once, half of the causal square. Layers run on activations of one microbatch,
// which partly stay in cache, so they may exceed the copy's rate. The headline is attention,
// forward and backward, over the matmul.
#include "chips/kernels.h"

#include <ATen/Parallel.h>
#include <malloc.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/clock.h"
#include "base/threads.h"
#include "bench/report.h"
#include "chips/kernels/registry.h"
#include "chips/torch.h"

namespace pelago::bench {
namespace {

namespace ops = chips::ops;

struct Shape {
  const char* name;
  int64_t batch, tokens, heads, key_heads, head_dim, hidden, intermediate, vocab;
};
constexpr Shape kShapes[] = {{"10m", 8, 256, 4, 2, 64, 256, 768, 8192},
                             {"10m-long", 2, 1024, 4, 2, 64, 256, 768, 8192},
                             {"100m", 8, 256, 12, 4, 64, 768, 2048, 16384}};

/// Seconds of one call: the best of 15 after one to warm up. What else runs on the machine can only
/// add to them, so the smallest says most about the kernel.
template <typename Action>
double seconds_of(const Action& action) {
  action();
  double best_s = std::numeric_limits<double>::infinity();
  for (int turn = 0; turn < 15; ++turn) {
    const double begin_s = steady_now_s();
    action();
    best_s = std::min(best_s, steady_now_s() - begin_s);
  }
  return best_s;
}

Tensor random_bf16(at::IntArrayRef shape) { return at::randn(shape).to(at::kBFloat16); }

double matmul_flop_s() {
  constexpr int64_t kSide = 1024;  // large enough for the full rate, short enough to go undisturbed
  const Tensor left = random_bf16({kSide, kSide});
  const Tensor right = random_bf16({kSide, kSide}).t();
  Tensor product = at::empty({kSide, kSide}, left.options());
  return 2.0 * kSide * kSide * kSide / seconds_of([&] { at::mm_out(product, left, right); });
}

double copy_bytes_s() {
  std::vector<float> from(64 << 20, 1.0F), to(64 << 20);
  const size_t num_bytes = from.size() * sizeof(float);
  return 2.0 * static_cast<double>(num_bytes) /
         seconds_of([&] { std::memcpy(to.data(), from.data(), num_bytes); });
}

class Meter {
 public:
  Meter(Report& report, double matmul_rate) : report_(report), matmul_rate_(matmul_rate) {}
  template <typename Action>
  void bytes(const std::string& name, double num_bytes, const Action& action) {
    const double seconds = seconds_of(action);
    report_.metrics[name + "_gb_s"] = num_bytes / seconds / 1e9;
    report_.metrics[name + "_ms"] = seconds * 1e3;
  }
  /// Returns the seconds.
  template <typename Action>
  double flops(const std::string& name, double num_flops, const Action& action) {
    const double seconds = seconds_of(action);
    report_.metrics[name + "_gflop_s"] = num_flops / seconds / 1e9;
    report_.metrics[name + "_share_of_matmul"] = num_flops / seconds / matmul_rate_;
    report_.metrics[name + "_ms"] = seconds * 1e3;
    return seconds;
  }

 private:
  Report& report_;
  double matmul_rate_;
};

/// Returns attention's share of the matmul rate.
double measure_products(const Shape& shape, Meter& meter, double matmul_rate) {
  const int64_t num_tokens = shape.batch * shape.tokens;
  const Tensor q = random_bf16({shape.batch, shape.tokens, shape.heads, shape.head_dim});
  const Tensor k = random_bf16({shape.batch, shape.tokens, shape.key_heads, shape.head_dim});
  const Tensor v = random_bf16({shape.batch, shape.tokens, shape.key_heads, shape.head_dim});
  const double pairs = static_cast<double>(shape.batch * shape.heads) *
                       static_cast<double>(shape.tokens * (shape.tokens + 1)) / 2;
  const double forward_flops = pairs * 4 * static_cast<double>(shape.head_dim);
  const auto [out, log_sum_exp] = ops::attention(q, k, v);
  const double forward_s =
      meter.flops("attention", forward_flops, [&] { ops::attention(q, k, v); });
  const double backward_s = meter.flops("attention_backward", 2.5 * forward_flops, [&] {
    ops::attention_backward(out, q, k, v, out, log_sum_exp);
  });

  const Tensor hidden = random_bf16({num_tokens, shape.hidden});
  const Tensor head = random_bf16({shape.vocab, shape.hidden}) * 0.05;
  const Tensor targets = at::randint(shape.vocab, {num_tokens}, at::kLong);
  const double head_flops =
      6.0 * static_cast<double>(num_tokens) * static_cast<double>(shape.vocab * shape.hidden);
  meter.flops(
      "cross_entropy", head_flops, [&] { ops::cross_entropy(hidden, head, targets, true); });

  const Tensor cached = random_bf16({1, 2048, shape.key_heads, shape.head_dim});
  const Tensor query = random_bf16({1, 1, shape.heads, shape.head_dim});
  meter.bytes("attention_decode_2048", 4.0 * static_cast<double>(cached.numel()), [&] {
    ops::attention(query, cached, cached);
  });
  return 3.5 * forward_flops / (forward_s + backward_s) / matmul_rate;
}

void measure_layers(const Shape& shape, Meter& meter) {
  const int64_t num_tokens = shape.batch * shape.tokens;
  const Tensor x = random_bf16({num_tokens, shape.hidden});
  const Tensor weight = random_bf16({shape.hidden});
  const auto [y, sum, inverse_rms] = ops::add_rms_norm(x, x, weight, 1e-6);
  const double x_bytes = 2.0 * static_cast<double>(x.numel());
  meter.bytes("add_rms_norm", 4 * x_bytes, [&] { ops::add_rms_norm(x, y, weight, 1e-6); });
  meter.bytes("rms_norm_backward", 4 * x_bytes, [&] {
    ops::rms_norm_backward(y, x, sum, weight, inverse_rms);
  });
  const Tensor gate_up = random_bf16({num_tokens, 2 * shape.intermediate});
  const Tensor grad = random_bf16({num_tokens, shape.intermediate});
  const double gate_bytes = 2.0 * static_cast<double>(grad.numel());
  meter.bytes("swiglu", 3 * gate_bytes, [&] { ops::swiglu(gate_up); });
  meter.bytes("swiglu_backward", 5 * gate_bytes, [&] { ops::swiglu_backward(grad, gate_up); });
  const Tensor q = random_bf16({shape.batch, shape.tokens, shape.heads, shape.head_dim});
  const Tensor angles = at::randn({shape.tokens, shape.head_dim / 2});
  const Tensor cos = angles.cos(), sin = angles.sin();
  meter.bytes("rope", 4.0 * static_cast<double>(q.numel()), [&] { ops::rope(q, cos, sin, false); });
}

void measure_vectors(Meter& meter) {
  constexpr int64_t kNumValues = 16 << 20;
  Tensor master = at::randn({kNumValues});
  Tensor m = at::zeros({kNumValues}), v = at::zeros({kNumValues});
  const Tensor grad = at::randn({kNumValues});
  Tensor weights = master.to(at::kBFloat16);
  meter.bytes("adamw", 30.0 * kNumValues, [&] {
    chips::adamw_step(master, grad, m, v, weights, {.lr = 1e-3, .weight_decay = 0.1, .step = 10});
  });
  meter.bytes("accumulate", 10.0 * kNumValues, [&] { chips::accumulate(m, weights); });
  meter.bytes("sum_of_squares", 4.0 * kNumValues, [&] { chips::sum_of_squares(grad); });
  const std::span<const float> values(grad.data_ptr<float>(), kNumValues);
  std::vector<float> restored(kNumValues);
  for (const int bits : {4, 8}) {
    const std::string suffix = fmt::format("_{}bit", bits);
    const auto quantised = chips::quantise(values, bits);
    meter.bytes("quantise" + suffix, 4.0 * kNumValues, [&] { chips::quantise(values, bits); });
    meter.bytes(
        "dequantise" + suffix, 4.0 * kNumValues, [&] { chips::dequantise(quantised, restored); });
  }
}

int main_of(int argc, char** argv) {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) names.emplace_back(shape.name);
  Program program("kernels", "How close do the kernels come to what the machine can do?", names);
  return program.run(argc, argv, [&](Report& report) {
    // Buffers come back from the heap instead of being mapped and cleared anew.
    ::mallopt(M_MMAP_THRESHOLD, 32 << 20);
    ::mallopt(M_TRIM_THRESHOLD, 1 << 30);
    at::set_num_threads(1);
    bind_to_cores({allowed_cores().back()});
    at::manual_seed(1);
    const double matmul_rate = matmul_flop_s();
    report.metrics["matmul_gflop_s"] = matmul_rate / 1e9;
    report.metrics["copy_gb_s"] = copy_bytes_s() / 1e9;
    report.target = 0.5;
    Meter meter(report, matmul_rate);
    for (const Shape& shape : kShapes) {
      if (report.case_name != shape.name) continue;
      report.ratio = measure_products(shape, meter, matmul_rate);
      measure_layers(shape, meter);
    }
    measure_vectors(meter);
  });
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) { return pelago::bench::main_of(argc, argv); }
