// What does the line cost? Tokens/s of the demo's two sites with their line emulated over the same
// without it: the runs take turns, medians of three.
#include "bench/fleet_run.h"
#include "bench/report.h"

namespace pelago::bench {
namespace {

constexpr const char* kJob = R"(
name = "two-sites"
[model]
preset = "10m"
[data]
dir = "data"
sequence_length = 128
[train]
batch_sequences = 40
microbatch_sequences = 8
eval_sequences = 8
eval_every_steps = 0
checkpoint_every_steps = 0
)";

std::string fleet_of(bool emulate_line) {
  return fmt::format(R"(
[emulation]
slowdown = 1000
[[site]]
name = "lingang"
[[site.device]]
device = "emulated:a100"
[[site.device]]
device = "emulated:h20"
[[site]]
name = "guizhou"
[[site.device]]
device = "emulated:910b"
count = 2
[[link]]
between = ["lingang", "guizhou"]
bandwidth_mbit_s = 200
rtt_ms = 30
emulate = {}
)",
                     emulate_line);
}

void measure(Report& report) {
  const FleetBench bench(kJob);
  bench.write_fleet("line.toml", fleet_of(true));
  bench.write_fleet("noline.toml", fleet_of(false));
  // Two devices of one kind count once in a probe, so the load asked for is lower than it will be.
  const double slowdown = bench.fit_slowdown("line.toml", 0.45);
  std::vector<double> with, without, ratios, waits;
  for (int turn = 0; turn < 3; ++turn) {
    without.push_back(bench.train("noline.toml", slowdown, 24)["tokens_s"].get<double>());
    const nlohmann::json run = bench.train("line.toml", slowdown, 24);
    with.push_back(run["tokens_s"].get<double>());
    waits.push_back(run["wait_line_ratio"].get<double>());
    ratios.push_back(with.back() / without.back());
    report.metrics["bytes_per_parameter_and_round"] = run["line_bytes_per_parameter"].get<double>();
    std::fprintf(stderr,
                 "turn %d: %.0f tokens/s with the line, %.0f without, ratio %.4f\n",
                 turn,
                 with.back(),
                 without.back(),
                 ratios.back());
  }
  report.metrics["with_line_tokens_s"] = median(with);
  report.metrics["without_line_tokens_s"] = median(without);
  report.metrics["wait_line_ratio"] = median(waits);
  report.metrics["slowdown"] = slowdown;
  report.ratio = median(ratios);
  report.target = 0.97;
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  using namespace pelago::bench;
  Program program("two_sites", "What does the line between two sites cost?", {"emulated"});
  return program.run(argc, argv, measure);
}
