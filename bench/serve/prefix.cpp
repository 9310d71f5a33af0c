// What is a shared beginning worth? Four clients ask with prompts of 512 tokens, of which 448 are
// the same for all, against prompts of which nothing is: the time to the first token, and tokens a
// second, taken in turns in one run.
#include "bench/report.h"
#include "bench/serve/engine_load.h"

namespace pelago::bench {
namespace {

constexpr size_t kPromptTokens = 512, kSharedTokens = 448, kClients = 4, kRequests = 8;
constexpr int kRounds = 3;
constexpr int64_t kNewTokens = 16;

struct Load {
  std::vector<double> first_s;
  std::vector<double> rates;  // tokens out a second
};

void run_round(serve::LocalEngine& engine,
               size_t num_shared,
               uint64_t shared_idx,
               uint64_t round,
               Load& load) {
  std::vector<serve::GenerateRequest> requests;
  for (uint64_t idx = 0; idx < kRequests; ++idx) {
    std::vector<int32_t> prompt = random_prompt(num_shared, Rng(7).fork("shared", shared_idx));
    const auto own = random_prompt(kPromptTokens - num_shared,
                                   Rng(num_shared).fork("own", round * kRequests + idx));
    prompt.insert(prompt.end(), own.begin(), own.end());
    requests.push_back(greedy_request(std::move(prompt), kNewTokens));
  }
  const double begin_s = steady_now_s();
  double num_tokens = 0;
  for (const Served& served : serve_all(engine, requests, kClients)) {
    load.first_s.push_back(served.first_s);
    num_tokens += static_cast<double>(served.tokens.size());
  }
  load.rates.push_back(num_tokens / (steady_now_s() - begin_s));
}

void measure(Report& report) {
  const std::string preset = report.case_name == "1b" ? "1b" : "35m";
  const auto engine = make_engine(preset, {.num_pages = 256, .speculation = {.draft_max = 0}});
  const bool is_new = report.case_name == "together";
  Load alone, shared;
  serve_all(
      *engine, {greedy_request(random_prompt(kSharedTokens + 1, Rng(7).fork("shared", 0)), 1)}, 1);
  for (uint64_t round = 0; round < kRounds; ++round) {
    run_round(*engine, 0, 0, round, alone);
    run_round(*engine, kSharedTokens, is_new ? round + 1 : 0, round, shared);
  }
  report.metrics["ttft_unshared_p50_ms"] = 1e3 * median(alone.first_s);
  report.metrics["ttft_shared_p50_ms"] = 1e3 * median(shared.first_s);
  report.metrics["out_unshared_tok_s"] = median(alone.rates);
  report.metrics["out_shared_tok_s"] = median(shared.rates);
  const double ttft = median(shared.first_s) / median(alone.first_s);
  const double throughput = median(shared.rates) / median(alone.rates);
  report.metrics["ttft_ratio"] = ttft;
  report.metrics["throughput_ratio"] = throughput;
  report.ratio = std::min(0.2 / ttft, throughput / 1.3);
  report.target = 1.0;
  report.notes.emplace_back(
      "ratio: the worse of 0.2 / (TTFT shared / unshared) and (throughput shared / unshared) / "
      "1.3");
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  pelago::bench::Program program(
      "prefix", "What is a beginning that prompts share worth?", {"35m", "1b", "together"});
  return program.run(argc, argv, pelago::bench::measure);
}
