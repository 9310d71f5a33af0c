// How much of its parts' speed does a site of unlike chips keep? Tokens/s of the mixed site over
// the sum of each device training alone: same job, same slowdown, the runs take turns, medians of
// three.
#include "bench/fleet_run.h"
#include "bench/report.h"

namespace pelago::bench {
namespace {

constexpr const char* kJob = R"(
name = "mixed"
[model]
preset = "2m"
[data]
dir = "data"
sequence_length = 128
[train]
batch_sequences = 64
microbatch_sequences = 8
eval_sequences = 8
eval_every_steps = 0
checkpoint_every_steps = 0
)";

constexpr const char* kChips[] = {"a100", "h20"};

std::string fleet_of(const std::vector<std::string>& chips) {
  std::string toml = "[emulation]\nslowdown = 1000\n[[site]]\nname = \"room\"\n";
  for (size_t i = 0; i < chips.size(); ++i) {
    toml += fmt::format("[[site.device]]\ndevice = \"emulated:{}\"\ncores = [{}]\n",
                        chips[i],
                        i % allowed_cores().size());
  }
  return toml;
}

void measure(Report& report) {
  const FleetBench bench(kJob);
  bench.write_fleet("mix.toml", fleet_of({kChips[0], kChips[1]}));
  for (const char* chip : kChips) bench.write_fleet(fmt::format("{}.toml", chip), fleet_of({chip}));
  const double slowdown = bench.fit_slowdown("mix.toml", 0.6);
  std::vector<double> mixed, ratios;
  std::vector<double> alone[2];
  for (int turn = 0; turn < 3; ++turn) {
    double sum = 0;
    for (size_t i = 0; i < 2; ++i) {
      alone[i].push_back(
          bench.train(fmt::format("{}.toml", kChips[i]), slowdown, 8)["tokens_s"].get<double>());
      sum += alone[i].back();
      std::fprintf(stderr, "turn %d: %s alone %.0f tokens/s\n", turn, kChips[i], alone[i].back());
    }
    mixed.push_back(bench.train("mix.toml", slowdown, 12)["tokens_s"].get<double>());
    ratios.push_back(mixed.back() / sum);
    std::fprintf(
        stderr, "turn %d: mixed %.0f tokens/s, ratio %.4f\n", turn, mixed.back(), ratios.back());
  }
  for (size_t i = 0; i < 2; ++i)
    report.metrics[fmt::format("{}_alone_tokens_s", kChips[i])] = median(alone[i]);
  report.metrics["sum_of_parts_tokens_s"] = median(alone[0]) + median(alone[1]);
  report.metrics["mixed_tokens_s"] = median(mixed);
  report.metrics["slowdown"] = slowdown;
  report.ratio = median(ratios);
  report.target = 0.96;
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  using namespace pelago::bench;
  Program program("mixed_site", "How much of its parts' speed does a mixed site keep?", {"dp"});
  return program.run(argc, argv, measure);
}
