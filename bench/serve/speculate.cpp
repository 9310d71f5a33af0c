// What is guessing worth? Copy-heavy text (a bias leaves few tokens, so that the answer repeats
// itself) and text where guesses fail (temperature 1 over the whole vocabulary), each with and
// without guesses, taken in turns in one run. The tokens must be the same.
#include "bench/report.h"
#include "bench/serve/engine_load.h"

namespace pelago::bench {
namespace {

constexpr int kRounds = 5;
constexpr int64_t kNewTokens = 96;

serve::GenerateRequest request_for(const std::string& case_name, int round) {
  // A prompt that holds its own continuation, as code that is edited or a text that is quoted does.
  std::vector<int32_t> part = random_prompt(40, Rng(5).fork("part", static_cast<uint64_t>(round)));
  std::vector<int32_t> prompt = part;
  prompt.insert(prompt.end(), part.begin(), part.end());
  serve::GenerateRequest request = greedy_request(std::move(prompt), kNewTokens);
  if (case_name == "elsewhere") {
    request.sampling.temperature = 1;
    request.sampling.seed = static_cast<uint64_t>(round);
  }
  return request;
}

void measure(Report& report) {
  std::vector<double> speeds_plain, speeds_guessing;
  for (int round = 0; round < kRounds; ++round) {
    const std::vector<serve::GenerateRequest> requests = {request_for(report.case_name, round)};
    // One engine at a time: each finds the caches and the memory as the other did.
    const auto run = [&](const serve::SpeculationOptions& options, std::vector<double>& speeds) {
      const auto engine = make_engine("100m", {.speculation = options});
      const Served served = serve_all(*engine, requests, 1).front();
      speeds.push_back(static_cast<double>(served.tokens.size() - 1) /
                       (served.total_s - served.first_s));
      report.metrics["guessed_tokens"] += static_cast<double>(engine->stats().draft_tokens);
      report.metrics["held_tokens"] += static_cast<double>(engine->stats().draft_accepted);
      return served.tokens;
    };
    const auto wanted = run({.draft_max = 0}, speeds_plain);
    if (run({}, speeds_guessing) != wanted) {
      if (report.case_name == "copies") fail("guessing changed the text in round {}", round);
      report.notes.emplace_back("rounding made one draw of a later token differ");
    }
  }
  report.metrics["plain_tok_s"] = median(speeds_plain);
  report.metrics["guessing_tok_s"] = median(speeds_guessing);
  report.ratio = median(speeds_guessing) / median(speeds_plain);
  report.target = report.case_name == "copies" ? 1.3 : 0.97;
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  pelago::bench::Program program(
      "speculate", "What is guessing the next tokens worth?", {"copies", "elsewhere"});
  return program.run(argc, argv, pelago::bench::measure);
}
