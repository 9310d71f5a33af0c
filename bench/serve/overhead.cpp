// How long does a token take outside the model's kernels: scheduling, drawing, text, waking up? The
// time of the engine's steps less that of the runner's passes, a token.
#include "bench/report.h"
#include "bench/serve/engine_load.h"

namespace pelago::bench {
namespace {

/// Counts the time spent in the runner that it passes everything on to.
class TimedRunner final : public serve::ModelRunner {
 public:
  explicit TimedRunner(std::unique_ptr<serve::ModelRunner> runner) : runner_(std::move(runner)) {}
  serve::RunnerOutput forward(std::span<const serve::SequenceChunk> chunks) override {
    const double begin_s = steady_now_s();
    const serve::RunnerOutput output = runner_->forward(chunks);
    inside_s += steady_now_s() - begin_s;
    return output;
  }
  void copy_page(int32_t from, int32_t to) override { runner_->copy_page(from, to); }
  std::span<std::byte> page(int32_t page_idx) override { return runner_->page(page_idx); }
  int64_t num_pages() const override { return runner_->num_pages(); }
  int64_t page_tokens() const override { return runner_->page_tokens(); }
  int64_t bytes_per_page() const override { return runner_->bytes_per_page(); }
  int64_t vocab_size() const override { return runner_->vocab_size(); }
  int64_t hidden_size() const override { return runner_->hidden_size(); }
  int64_t context_length() const override { return runner_->context_length(); }
  int64_t max_batch_tokens() const override { return runner_->max_batch_tokens(); }
  int64_t weight_bytes() const override { return runner_->weight_bytes(); }

  double inside_s = 0;

 private:
  std::unique_ptr<serve::ModelRunner> runner_;
};

void measure(Report& report) {
  serve::RunnerOptions options = bound_options(serve::WeightDtype::kBf16);
  options.num_pages = 256;
  options.max_batch_tokens = 640;
  TimedRunner runner(open_cpu_runner(served_folder("35m"), options));
  const data::Tokenizer tokenizer = bench_tokenizer();
  serve::BatchEngine engine(
      runner, tokenizer, {.scheduler = {.step_tokens = 512, .sequences_max = 32}});
  const bool is_greedy = report.case_name == "greedy";
  std::vector<double> overheads_ms;
  for (uint64_t round = 0; round < 7; ++round) {
    constexpr uint64_t kSequences = 4;
    for (uint64_t idx = 0; idx < kSequences; ++idx) {
      auto request = greedy_request(random_prompt(32, Rng(round).fork("prompt", idx)), 64);
      if (!is_greedy) {
        request.sampling.temperature = 0.8F;
        request.sampling.top_p = 0.95F;
      }
      engine.submit(round * kSequences + idx + 1, std::move(request), [](const serve::Piece&) {});
    }
    const double begin_s = steady_now_s();
    const double inside_before_s = runner.inside_s;
    const uint64_t tokens_before = engine.stats().completion_tokens;
    while (engine.step()) {
    }
    const double outside_s = steady_now_s() - begin_s - (runner.inside_s - inside_before_s);
    overheads_ms.push_back(1e3 * outside_s /
                           static_cast<double>(engine.stats().completion_tokens - tokens_before));
  }
  report.metrics["outside_kernels_ms_a_token"] = median(overheads_ms);
  report.metrics["limit_ms_a_token"] = 0.25;
  report.ratio = 0.25 / median(overheads_ms);
  report.target = 1.0;
  report.notes.emplace_back("ratio: 0.25 ms over the time a token outside the runner's passes");
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  pelago::bench::Program program(
      "overhead", "How long does a token take outside the kernels?", {"greedy", "sampled"});
  return program.run(argc, argv, pelago::bench::measure);
}
