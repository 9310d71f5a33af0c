// What do narrow weights and a narrow cache cost? Held-out loss of a trained model as the server
// computes it, in nats a token, against the same with bf16 weights and a bf16 cache:
//
//   int8, int4   weights rounded to nearest, in groups of 64, as `pelago serve --dtype` does it
//   int8-kv      keys and values in 8 bits
//
// Sequences are read in chunks, so that most of what attention sees comes out of pages.
#include "bench/report.h"
#include "bench/serve/served_model.h"
#include "compress/quantise.h"

namespace pelago::bench {
namespace {

using serve::KvDtype;
using serve::WeightDtype;

struct Options {
  std::string model = "runs/two-sites/model", data = "runs/data/headers";
  int64_t num_sequences = 64, num_tokens = 512;
};

/// Of the tokens that follow others, nats each.
double loss_of(const Options& options,
               const std::vector<int>& cores,
               const Tensor& windows,
               WeightDtype weights,
               KvDtype kv) {
  constexpr int64_t kChunk = 64;
  serve::RunnerOptions opened = bound_options(weights);
  opened.group_size = 64;
  opened.kv = kv;
  opened.cores = cores;
  opened.num_threads = static_cast<int>(cores.size());
  opened.num_pages = (windows.size(1) + opened.page_tokens - 1) / opened.page_tokens;
  const auto runner = open_cpu_runner(options.model, opened);
  std::vector<int32_t> pages(static_cast<size_t>(opened.num_pages));
  std::iota(pages.begin(), pages.end(), 0);
  double sum = 0;
  int64_t num_summed = 0;
  const Tensor narrow = windows.to(at::kInt).contiguous();
  const int64_t num_tokens = windows.size(1);
  for (int64_t idx = 0; idx < windows.size(0); ++idx) {
    const int32_t* tokens = narrow.data_ptr<int32_t>() + idx * num_tokens;
    for (int64_t first = 0; first + 1 < num_tokens; first += kChunk) {
      const int64_t count = std::min(kChunk, num_tokens - 1 - first);
      const serve::SequenceChunk chunk{.tokens = {tokens + first, static_cast<size_t>(count)},
                                       .first_position = first,
                                       .pages = pages,
                                       .wanted = serve::Wanted::kAllLogits};
      const std::span<const float> rows = runner->forward({&chunk, 1}).logits;
      const Tensor logits =
          at::from_blob(const_cast<float*>(rows.data()), {count, runner->vocab_size()}, at::kFloat);
      const Tensor next = windows[idx].narrow(0, first + 1, count).unsqueeze(1);
      sum -= at::log_softmax(logits.to(at::kDouble), 1).gather(1, next).sum().item<double>();
      num_summed += count;
    }
  }
  return sum / static_cast<double>(num_summed);
}

void measure(const Options& options, Report& report) {
  const model::ModelConfig config =
      model::read_model_config(std::filesystem::path(options.model) / "config.json");
  const Tensor windows =
      compress::read_windows(options.data,
                             "heldout",
                             config.vocab_size,
                             options.num_sequences,
                             std::min(options.num_tokens, config.max_position_embeddings));
  const std::string& name = report.case_name;
  const std::vector<int> cores = allowed_cores();
  const double wide = loss_of(options, cores, windows, WeightDtype::kBf16, KvDtype::kBf16);
  const double narrow = loss_of(options,
                                cores,
                                windows,
                                name == "int8"   ? WeightDtype::kInt8
                                : name == "int4" ? WeightDtype::kInt4
                                                 : WeightDtype::kBf16,
                                name == "int8-kv" ? KvDtype::kInt8 : KvDtype::kBf16);
  bind_to_cores(cores);  // the runner has bound this thread to the first of them
  report.metrics["loss_bf16_nat"] = wide;
  report.metrics["loss_narrow_nat"] = narrow;
  report.ratio = 100 * (narrow / wide - 1);
  report.is_cost = true;
  report.target = name == "int8" ? 1 : name == "int4" ? 3 : 0.2;
  report.notes.emplace_back("ratio: how much the loss rises, in %");
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  namespace bench = pelago::bench;
  bench::Program program(
      "quality", "What do narrow weights and a narrow cache cost?", {"int8", "int4", "int8-kv"});
  bench::Options options;
  CLI::App& app = program.options();
  app.add_option("--model", options.model, "a trained model's folder")->capture_default_str();
  app.add_option("--data", options.data, "the dataset it was trained on")->capture_default_str();
  app.add_option("--sequences", options.num_sequences, "held out")->capture_default_str();
  app.add_option("--tokens", options.num_tokens, "a sequence")->capture_default_str();
  return program.run(argc, argv, [&](bench::Report& report) { bench::measure(options, report); });
}
