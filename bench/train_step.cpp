// How much of the processor's matmul rate does training keep? FLOP/s of whole steps (forward,
// backward, gradient accumulation, AdamW) over the rate of a large bf16 matmul of the same library
// on the same threads, measured in turn with the steps. FLOPs are those that the arithmetic needs:
// three times the forward pass, no credit for what is computed twice. The peer is the same model
// written plainly on libtorch's modules.
#include <ATen/Parallel.h>
#include <malloc.h>
#include <torch/torch.h>

#include <algorithm>
#include <memory>

#include "base/clock.h"
#include "base/threads.h"
#include "bench/lone_model.h"
#include "bench/plain_model.h"
#include "bench/report.h"

namespace pelago::bench {
namespace {

struct Case {
  const char* name;
  const char* preset;
  int num_cores;
  int64_t num_microbatches;  // a step
  int num_steps;             // timed
};
constexpr Case kCases[] = {{"10m-1core", "10m", 1, 4, 7},
                           {"10m-2core", "10m", 2, 4, 7},
                           {"100m-1core", "100m", 1, 1, 3},
                           {"100m-2core", "100m", 2, 1, 3}};
constexpr int64_t kSequences = 8;  // a microbatch
constexpr int64_t kTokens = 256;   // a sequence; both as a job has them by default

/// One thread a core, each bound to its own, and none of them slowed by denormals.
void take_cores(const std::vector<int>& cores, int num_cores) {
  if (static_cast<int>(cores.size()) < num_cores) {
    fail_usage("this case needs {} cores but {} are allowed", num_cores, cores.size());
  }
  // 32 MiB is the largest threshold that glibc takes; beyond it every buffer is mapped anew and
  // its pages are cleared.
  ::mallopt(M_MMAP_THRESHOLD, 32 << 20);
  ::mallopt(M_TRIM_THRESHOLD, 1 << 30);
  at::set_num_threads(num_cores);
  at::parallel_for(0, num_cores, 1, [&](int64_t thread_idx, int64_t) {
    bind_to_cores({cores[static_cast<size_t>(thread_idx)]});
    at::globalContext().setFlushDenormal(true);
  });
}

class MatmulMeter {
 public:
  void measure() {
    const torch::NoGradGuard no_grad;
    const double begin_s = steady_now_s();
    at::mm_out(product_, left_, right_);
    rates_.push_back(2.0 * kSide * kSide * kSide / (steady_now_s() - begin_s));
  }
  double median_flop_s() const { return median(rates_); }

 private:
  static constexpr int64_t kSide = 2048;
  Tensor left_ = torch::randn({kSide, kSide}).to(torch::kBFloat16);
  Tensor right_ = torch::randn({kSide, kSide}).to(torch::kBFloat16);
  Tensor product_ = torch::empty({kSide, kSide}, torch::kBFloat16);
  std::vector<double> rates_;
};

class OurStep {
 public:
  explicit OurStep(const model::ModelConfig& config) : model_(config, Rng(1)) {}

  void run(const Tensor& tokens, const Tensor& targets, int64_t num_microbatches) {
    model_.gradient.zero_();
    for (int64_t microbatch = 0; microbatch < num_microbatches; ++microbatch) {
      model_.add_gradient(model_.transformer.loss_sum(tokens, targets));
    }
    const double num_tokens = static_cast<double>(num_microbatches * tokens.numel());
    chips::adamw_step(model_.master,
                      model_.gradient,
                      model_.m,
                      model_.v,
                      model_.weights,
                      {.lr = 1e-3,
                       .weight_decay = 0.1,
                       .step = ++step_,
                       .grad_scale = model_.gradient_scale(num_tokens)});
  }

 private:
  LoneModel model_;
  int64_t step_ = 0;
};

class PlainStep {
 public:
  explicit PlainStep(const model::ModelConfig& config) : model_(config) {
    model_.to(torch::kBFloat16);
    optimizer_ = std::make_unique<torch::optim::AdamW>(
        model_.parameters(), torch::optim::AdamWOptions(1e-3).weight_decay(0.1));
  }

  void run(const Tensor& tokens, const Tensor& targets, int64_t num_microbatches) {
    optimizer_->zero_grad();
    for (int64_t microbatch = 0; microbatch < num_microbatches; ++microbatch) {
      model_.loss(tokens, targets).backward();
    }
    torch::nn::utils::clip_grad_norm_(model_.parameters(), 1.0);
    optimizer_->step();
  }

 private:
  PlainModel model_;
  std::unique_ptr<torch::optim::AdamW> optimizer_;
};

template <typename Action>
double seconds_of(const Action& action) {
  const double begin_s = steady_now_s();
  action();
  return steady_now_s() - begin_s;
}

void measure_case(const Case& wanted, bool with_peer, Report& report, const std::string& prefix) {
  torch::manual_seed(1);
  const model::ModelConfig config = model::preset(wanted.preset);
  const Tensor tokens = torch::randint(config.vocab_size, {kSequences, kTokens}, torch::kLong);
  const Tensor targets = tokens.roll(-1, 1);
  const double step_tokens = static_cast<double>(wanted.num_microbatches * tokens.numel());
  const double step_flops = 3 * config.forward_flops_per_token(kTokens) * step_tokens;

  MatmulMeter matmul;
  std::vector<double> ours_s, plain_s, ratios;
  {
    OurStep ours(config);
    ours.run(tokens, targets, 1);
    matmul.measure();
    for (int step = 0; step < wanted.num_steps; ++step) {
      for (int turn = 0; turn < 3; ++turn) matmul.measure();
      ours_s.push_back(seconds_of([&] { ours.run(tokens, targets, wanted.num_microbatches); }));
    }
  }
  if (with_peer) {
    PlainStep plain(config);
    plain.run(tokens, targets, 1);
    for (int step = 0; step < std::max(1, wanted.num_steps / 2); ++step) {
      matmul.measure();
      plain_s.push_back(seconds_of([&] { plain.run(tokens, targets, wanted.num_microbatches); }));
    }
    report.metrics[prefix + "peer_tokens_s"] = step_tokens / median(plain_s);
    report.metrics[prefix + "peer_ratio"] = step_flops / median(plain_s) / matmul.median_flop_s();
  }
  report.metrics[prefix + "matmul_gflop_s"] = matmul.median_flop_s() / 1e9;
  report.metrics[prefix + "train_gflop_s"] = step_flops / median(ours_s) / 1e9;
  report.metrics[prefix + "tokens_s"] = step_tokens / median(ours_s);
  report.metrics[prefix + "parameters"] = static_cast<double>(config.num_parameters());
  const double ratio = step_flops / median(ours_s) / matmul.median_flop_s();
  if (!prefix.empty()) report.metrics[prefix + "ratio"] = ratio;
  report.ratio = report.ratio == 0 ? ratio : std::min(report.ratio, ratio);
}

int main_of(int argc, char** argv) {
  std::vector<std::string> names;
  for (const Case& known : kCases) names.emplace_back(known.name);
  names.emplace_back("all");
  Program program(
      "train_step", "How much of the matmul rate does a whole training step keep?", names);
  bool with_peer = true;
  program.options().add_flag("!--no-peer", with_peer, "leave out the plainly written model");
  return program.run(argc, argv, [&](Report& report) {
    report.target = 0.40;
    const std::vector<int> cores = allowed_cores();
    const bool all = report.case_name == "all";  // ratio: the smallest
    for (const Case& known : kCases) {
      if (!all && report.case_name != known.name) continue;
      take_cores(cores, known.num_cores);
      measure_case(known, with_peer, report, all ? std::string(known.name) + "_" : "");
      bind_to_cores(cores);  // the main thread, for who comes after
    }
  });
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) { return pelago::bench::main_of(argc, argv); }
