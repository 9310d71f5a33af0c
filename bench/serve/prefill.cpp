// How near does reading a prompt of 512 tokens come to the rate of a large bf16 product by the
// library, measured in turns in one run? FLOPs are those of the blocks' matrices alone, so
// attention and all else count as loss. Quantised cases multiply in 8 bits, twice as fast on
// processors with VNNI; their figure is tokens a second over the target's.
#include <ATen/Parallel.h>

#include <algorithm>

#include "bench/report.h"
#include "bench/serve/served_model.h"
#include "model/config.h"

namespace pelago::bench {
namespace {

using serve::WeightDtype;

constexpr int kRounds = 7;
constexpr size_t kPromptTokens = 512;

/// One of the library's threads a core, each bound to its own: left free, both may sit on one.
void bind_library(const std::vector<int>& cores) {
  const auto num_cores = static_cast<int>(cores.size());
  at::set_num_threads(num_cores);
  at::parallel_for(0, num_cores, 1, [&](int64_t thread_idx, int64_t) {
    bind_to_cores({cores[static_cast<size_t>(thread_idx)]});
  });
}

/// FLOP/s of [512,2048] x [2048,5632] in bf16 on all cores.
double matmul_rate() {
  const Tensor x = at::ones({512, 2048}, at::kBFloat16);
  const Tensor weights = at::ones({5632, 2048}, at::kBFloat16);
  at::mm(x, weights.t());
  const double begin = seconds_now();
  constexpr int kProducts = 12;
  for (int i = 0; i < kProducts; ++i) at::mm(x, weights.t());
  return 2.0 * 512 * 2048 * 5632 * kProducts / (seconds_now() - begin);
}

void measure(Report& report) {
  const bool is_bf16 = report.case_name == "bf16";
  serve::RunnerOptions options = bound_options(is_bf16                      ? WeightDtype::kBf16
                                               : report.case_name == "int8" ? WeightDtype::kInt8
                                                                            : WeightDtype::kInt4);
  options.num_pages = kPromptTokens / 32;
  bind_library(options.cores);
  const auto runner = open_cpu_runner(served_folder("1b"), options);
  Generation generation(*runner, 1);
  const model::ModelConfig config = model::preset("1b");
  const double flops =
      kPromptTokens * 2.0 *
      static_cast<double>(config.num_parameters() - 2 * config.vocab_size * config.hidden_size);
  std::vector<double> rates, shares, matmuls;
  for (int round = 0; round < kRounds; ++round) {
    const double before = matmul_rate();
    const double begin = seconds_now();
    generation.read_prompts(kPromptTokens);
    const double elapsed_s = seconds_now() - begin;
    const double matmul = std::max(before, matmul_rate());
    rates.push_back(kPromptTokens / elapsed_s);
    matmuls.push_back(matmul);
    shares.push_back(flops / elapsed_s / matmul);
  }
  report.metrics["prefill_tok_s"] = median(rates);
  report.metrics["prefill_best_tok_s"] = *std::max_element(rates.begin(), rates.end());
  report.metrics["matmul_bf16_gflop_s"] = median(matmuls) / 1e9;
  report.metrics["matmul_share"] = median(shares);
  bind_to_cores(options.cores);
  report.ratio = is_bf16 ? median(shares) : median(rates) / 356;
  report.target = is_bf16 ? 0.8 : 1.0;
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  using namespace pelago::bench;
  Program program("prefill",
                  "How near does reading a prompt come to the rate of a matrix product?",
                  {"bf16", "int8", "int4"});
  return program.run(argc, argv, [](Report& report) { measure(report); });
}
