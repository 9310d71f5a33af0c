// What does training in each chip's own precision cost? The held-out loss of a site whose chips
// train in bf16 and, where they have none, in fp16, against the same run in f32 throughout: same
// fleet, plan, data and seed.
#include <cmath>

#include "bench/fleet_run.h"
#include "bench/report.h"

namespace pelago::bench {
namespace {

constexpr const char* kJob = R"(
name = "precision"
[model]
preset = "2m"
[data]
dir = "data"
sequence_length = 128
[train]
batch_sequences = 32
microbatch_sequences = 8
warmup_steps = 20
exact_batch = true
lr = 1e-3  # at 3e-3 the gradient of f32 itself spikes, and a run's loss is its luck
eval_sequences = 256
eval_every_steps = 0
checkpoint_every_steps = 0
)";

// An Ascend 910A has no bf16: it computes in fp16 with a scaled loss.
constexpr const char* kFleet = R"(
[emulation]
slowdown = 1000
[[site]]
name = "room"
[[site.device]]
device = "emulated:a100"
cores = [0]
[[site.device]]
device = "emulated:910a"
cores = [1]
)";

struct Settings {
  int64_t steps = 100;
  int64_t seeds = 2;
};

double heldout_loss(const FleetBench& bench,
                    double slowdown,
                    int64_t steps,
                    const std::string& set) {
  const nlohmann::json run = bench.train("mix.toml", slowdown, steps, set);
  return run["heldout_loss_end"].get<double>();
}

void measure(const Settings& settings, Report& report) {
  const FleetBench bench(kJob, /*vocab_size=*/1024);
  bench.write_fleet("mix.toml", kFleet);
  // A pipeline has one border, which bf16 and fp16 cross; replicas meet in their sums only.
  const std::string cut = report.case_name == "pipeline" ? "always" : "never";
  double worst = 0;
  for (int64_t seed = 1; seed <= settings.seeds; ++seed) {
    double losses[2] = {};
    for (const bool is_mixed : {false, true}) {
      const std::string dtype = is_mixed ? "auto" : "f32";
      const std::string set =
          fmt::format("--set train.dtype={} --set train.pipeline={}", dtype, cut);
      const double slowdown = bench.fit_slowdown("mix.toml", /*load=*/0.7, set);
      losses[is_mixed ? 1 : 0] = heldout_loss(
          bench, slowdown, settings.steps, fmt::format("{} --set train.seed={}", set, seed));
    }
    const double gap = losses[1] / losses[0] - 1;
    worst = std::max(worst, std::abs(gap));
    std::fprintf(stderr,
                 "seed %d: loss %.5f in each chip's precision, %.5f in f32, gap %+.3f %%\n",
                 static_cast<int>(seed),
                 losses[1],
                 losses[0],
                 100 * gap);
    report.metrics[fmt::format("mixed_loss_seed{}", seed)] = losses[1];
    report.metrics[fmt::format("f32_loss_seed{}", seed)] = losses[0];
  }
  report.metrics["worst_gap_percent"] = 100 * worst;
  report.metrics["steps"] = static_cast<double>(settings.steps);
  report.ratio = 0.005 / std::max(worst, 1e-9);
  report.target = 1.0;
  report.notes.push_back("ratio: 0.5 % over the largest distance from the loss of f32");
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  using namespace pelago::bench;
  Program program("precision_mix",
                  "How far is the loss of chips in their own precision from that of f32?",
                  {"pipeline", "replicas"});
  Settings settings;
  program.options().add_option("--steps", settings.steps, "of each run");
  program.options().add_option("--seeds", settings.seeds, "of which the worst counts");
  return program.run(argc, argv, [&](Report& report) { measure(settings, report); });
}
