// How much of its parts' speed does a site of unlike chips keep? Tokens/s of the mixed site over
// the sum of its parts training alone: same job, same slowdown, the runs take turns, medians of
// three. A part is the devices of one brand, with whatever plan serves them best.

#include "bench/fleet_run.h"
#include "bench/killed_run.h"
#include "bench/report.h"
#include "bench/two_groups.h"

namespace pelago::bench {
namespace {

/// Devices of one brand.
struct Part {
  std::string chip;
  int count = 1;
  double memory_gib = 0;  // 0: the catalogue's
};

struct Settings {
  int turns = 3;
  double host_load = 0.5;  // of the processors, that emulation of the mixed site may keep busy
};

struct Case {
  std::string name;
  double target = 0;
  std::vector<Part> parts;
  std::string job = {};  // overrides
  int64_t steps = 3;
};

// Large steps, as real ones are: a step of few tokens would measure the reduction of its gradients,
// which a real job of thousands of sequences hides. And few words: a real model has a thirtieth of
// its parameters in its embedding, whose gradient is complete last; this one has a tenth.
constexpr int kVocabSize = 1024;
constexpr const char* kJob = R"(
name = "mixed"
[model]
preset = "2m"
[data]
dir = "data"
sequence_length = 128
[train]
batch_sequences = 960
microbatch_sequences = 16
eval_sequences = 8
eval_every_steps = 0
checkpoint_every_steps = 0
)";

const std::vector<Case> kCases = {
    // Nothing but sums and shares cost here, so its steps are larger.
    {"dp", 0.985, {{"a100"}, {"h20"}, {"910b"}}, "--set train.batch_sequences=1920"},
    // A whole model needs 20 MiB beside the 50 of its activations, or 15 if it recomputes them: no
    // chip here has that, unless its optimizer's state is elsewhere.
    {"pp", 0.98, {{"a100", 2, 0.024}, {"h20", 2, 0.024}}},
    // Eight blocks: alone the first chip recomputes them all, in small microbatches.
    {"memory", 1.00, {{"a100", 1, 0.042}, {"h20", 1, 0.5}}, "--set model.num_hidden_layers=8"},
    // Together they run pipelines of one, two and three stages or more; alone they are slow.
    {"grid",
     0.97,
     {{"a100", 3, 0.015}, {"h20", 2, 0.030}, {"910b", 3, 0.015}},
     "--set train.batch_sequences=480"},
};

std::string devices_of(const Part& part, size_t first_core) {
  std::string toml;
  for (int i = 0; i < part.count; ++i) {
    toml += fmt::format("[[site.device]]\ndevice = \"emulated:{}\"\ncores = [{}]\n",
                        part.chip,
                        (first_core + static_cast<size_t>(i)) % allowed_cores().size());
    if (part.memory_gib > 0) toml += fmt::format("memory_gib = {}\n", part.memory_gib);
  }
  return toml;
}

std::string fleet_of(const std::vector<Part>& parts) {
  std::string toml = "[emulation]\nslowdown = 1000\n[[site]]\nname = \"room\"\n";
  size_t core = 0;
  for (const Part& part : parts) {
    toml += devices_of(part, core);
    core += static_cast<size_t>(part.count);
  }
  return toml;
}

const Case& find_case(const std::string& name) {
  for (const Case& known : kCases) {
    if (known.name == name) return known;
  }
  fail("no case {}", name);
}

void measure_mix(const Case& chosen, const Settings& settings, Report& report) {
  const FleetBench bench(kJob, kVocabSize);
  bench.write_fleet("mix.toml", fleet_of(chosen.parts));
  for (const Part& part : chosen.parts) bench.write_fleet(part.chip + ".toml", fleet_of({part}));
  const double slowdown = bench.fit_slowdown("mix.toml", settings.host_load, chosen.job);
  std::vector<double> mixed, ratios;
  std::vector<std::vector<double>> alone(chosen.parts.size());
  for (int turn = 0; turn < settings.turns; ++turn) {
    double sum = 0;
    for (size_t i = 0; i < chosen.parts.size(); ++i) {
      const std::string& chip = chosen.parts[i].chip;
      alone[i].push_back(bench.tokens_a_second(chip + ".toml", slowdown, chosen.steps, chosen.job));
      sum += alone[i].back();
      std::fprintf(
          stderr, "turn %d: %s alone %.0f tokens/s\n", turn, chip.c_str(), alone[i].back());
    }
    mixed.push_back(bench.tokens_a_second("mix.toml", slowdown, chosen.steps, chosen.job));
    ratios.push_back(mixed.back() / sum);
    std::fprintf(
        stderr, "turn %d: mixed %.0f tokens/s, ratio %.4f\n", turn, mixed.back(), ratios.back());
  }
  double sum = 0;
  for (size_t i = 0; i < alone.size(); ++i) {
    report.metrics[fmt::format("{}_alone_tokens_s", chosen.parts[i].chip)] = median(alone[i]);
    sum += median(alone[i]);
  }
  report.metrics["sum_of_parts_tokens_s"] = sum;
  report.metrics["mixed_tokens_s"] = median(mixed);
  report.metrics["slowdown"] = slowdown;
  report.ratio = median(ratios);
  report.target = chosen.target;
}

/// The same run with and without all that looks after chips and keeps snapshots.
void measure_health(const Settings& settings, Report& report) {
  const FleetBench bench(kJob, kVocabSize);
  bench.write_fleet("mix.toml", fleet_of({{"a100"}, {"h20"}}));
  const double slowdown = bench.fit_slowdown("mix.toml", settings.host_load);
  // A tenth of the usual period, so that audits fall into so short a run at all.
  const std::string small = "--set train.batch_sequences=128 ";
  const std::string on = small + "--set train.audit_every_steps=20";
  const std::string off = small +
                          "--set train.audit_every_steps=0 --set train.snapshot_every_steps=0 "
                          "--set train.known_answer=false";
  std::vector<double> with, without, ratios;
  for (int turn = 0; turn < settings.turns; ++turn) {
    without.push_back(bench.mean_tokens_a_second("mix.toml", slowdown, 42, off));
    with.push_back(bench.mean_tokens_a_second("mix.toml", slowdown, 42, on));
    ratios.push_back(with.back() / without.back());
    std::fprintf(stderr,
                 "turn %d: %.0f tokens/s with checks, %.0f without, ratio %.4f\n",
                 turn,
                 with.back(),
                 without.back(),
                 ratios.back());
  }
  report.metrics["with_checks_tokens_s"] = median(with);
  report.metrics["without_checks_tokens_s"] = median(without);
  report.metrics["slowdown"] = slowdown;
  report.ratio = median(ratios);
  report.target = 0.99;
}

/// Kills a worker in the middle of a run: how long until the site has done a step that it had not
/// done before? The ratio is the time allowed over the time taken.
void measure_killed(const Settings& settings, Report& report) {
  const FleetBench bench(kJob, kVocabSize);
  bench.write_fleet("mix.toml", fleet_of({{"a100"}, {"h20"}, {"910b"}}));
  const double slowdown = bench.fit_slowdown("mix.toml", settings.host_load);
  std::vector<double> times, allowed;
  for (int turn = 0; turn < settings.turns; ++turn) {
    const KilledRun run = kill_a_worker(
        bench, "mix.toml", slowdown, /*at_step=*/12, "--set train.batch_sequences=128");
    times.push_back(run.next_new_step_s);
    allowed.push_back(std::max(5.0, 10 * run.step_s));
    std::fprintf(stderr,
                 "turn %d: %.2f s to the next new step, steps take %.2f s\n",
                 turn,
                 run.next_new_step_s,
                 run.step_s);
  }
  report.metrics["next_new_step_s"] = median(times);
  report.metrics["allowed_s"] = median(allowed);
  report.metrics["slowdown"] = slowdown;
  report.ratio = median(allowed) / median(times);
  report.target = 1.0;
}

void measure(const Settings& settings, Report& report) {
  if (report.case_name == "health") return measure_health(settings, report);
  if (report.case_name == "killed") return measure_killed(settings, report);
  if (report.case_name == "native+ucx") {
    return two_groups::measure("910c", /*slowdown=*/300, /*megabytes=*/40, report);
  }
  measure_mix(find_case(report.case_name), settings, report);
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  using namespace pelago::bench;
  Program program("mixed_site",
                  "How much of its parts' speed does a mixed site keep, and what do checks and "
                  "losses cost it?",
                  {"dp", "pp", "memory", "grid", "native+ucx", "health", "killed"});
  Settings settings;
  program.options().add_option("--turns", settings.turns, "of which the median counts");
  program.options().add_option(
      "--host-load", settings.host_load, "share of the processors for emulation; lower is slower");
  return program.run(argc, argv, [&](Report& report) { measure(settings, report); });
}
