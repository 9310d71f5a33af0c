// Is the later of two engines that are open in one process as fast as the earlier one? A reload and
// a drafter open a second model beside the first. They take turns, so that neither has the machine
// to itself nor shares it with the other at work; all threads of the one that waits must sleep.
#include "bench/report.h"
#include "bench/serve/engine_load.h"

namespace pelago::bench {
namespace {

constexpr int kRounds = 5;
constexpr int64_t kNewTokens = 64;

double tokens_s(serve::LocalEngine& engine, int round) {
  const auto prompt = random_prompt(40, Rng(5).fork("part", static_cast<uint64_t>(round)));
  const Served served = serve_all(engine, {greedy_request(prompt, kNewTokens)}, 1).front();
  return static_cast<double>(served.tokens.size() - 1) / (served.total_s - served.first_s);
}

void measure(Report& report) {
  const LoadOptions load = {.num_pages = 32, .speculation = {.draft_max = 0}};
  const auto first = make_engine("100m", load), second = make_engine("100m", load);
  std::vector<double> first_speeds, second_speeds;
  for (int round = 0; round < kRounds; ++round) {
    first_speeds.push_back(tokens_s(*first, round));
    second_speeds.push_back(tokens_s(*second, round));
  }
  report.metrics["first_tok_s"] = median(first_speeds);
  report.metrics["second_tok_s"] = median(second_speeds);
  report.ratio = median(second_speeds) / median(first_speeds);
  report.target = 0.95;
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  pelago::bench::Program program(
      "two_engines", "Is the later of two open engines as fast as the earlier one?", {"turns"});
  return program.run(argc, argv, pelago::bench::measure);
}
