// The case `pipeline` of two_sites: two stages of one pipeline in two sites, a line of 1 Gbit/s and
// a round trip of 20 ms between them, over the same two stages in one site. The line is emulated in
// the transport, which holds each message back until such a line would have brought it; gRPC, TLS
// and the agents are real, and so is what they cost. Runs take turns, medians of three.
#pragma once

#include "bench/fleet_run.h"
#include "bench/report.h"

namespace pelago::bench {

struct PipelineBench {
  int num_turns = 3;
  double load = 0.35;  // of the host's processors, by emulated chips
  int64_t steps = 14;
  double line_mbit_s = 1000;
  std::string more;  // further settings of both runs, as --set words
};

inline constexpr const char* kPipelineJob = R"(
name = "pipeline"
[model]
preset = "10m"
[data]
dir = "data"
sequence_length = 128
[train]
batch_sequences = 96
microbatch_sequences = 4
exact_batch = true
pipeline = "always"
stages = 2
eval_sequences = 8
eval_every_steps = 0
checkpoint_every_steps = 0
snapshot_every_steps = 0
audit_every_steps = 0
[sites]
across = "pipeline"
)";

inline std::string pipeline_fleet(bool is_one_site, double line_mbit_s) {
  const std::string other_site = R"(
[[site]]
name = "guizhou"
)";
  const std::string line = fmt::format(R"(
[[link]]
between = ["lingang", "guizhou"]
bandwidth_mbit_s = {}
rtt_ms = 20
emulate = true
)",
                                       line_mbit_s);
  return fmt::format(R"(
[emulation]
slowdown = 1000
[[site]]
name = "lingang"
[[site.device]]
device = "emulated:a100"
{}[[site.device]]
device = "emulated:910b"
{})",
                     is_one_site ? "" : other_site,
                     is_one_site ? "" : line);
}

/// Tokens of a step over the mean time of a step, of rank 0's site, which sees the whole step; the
/// first three left out.
inline double step_rate(const FleetBench& bench, const nlohmann::json& summary, double& step_s) {
  std::map<int64_t, double> tokens, seconds;
  for (const auto& step : bench.steps_of(summary["run"])) {
    const int64_t idx = step["step"];
    if (idx < 4) continue;
    tokens[idx] += step["tokens"].get<double>();
    seconds[idx] = std::max(seconds[idx], step["step_s"].get<double>());
  }
  if (tokens.empty()) fail("the run has no steps to measure");
  double all_tokens = 0, all_s = 0;
  for (const auto& [idx, counted] : tokens) {
    all_tokens += counted;
    all_s += seconds[idx];
  }
  step_s = all_s / static_cast<double>(tokens.size());
  return all_tokens / all_s;
}

inline void measure_pipeline(Report& report, const PipelineBench& given) {
  const FleetBench bench(kPipelineJob);
  bench.write_fleet("one.toml", pipeline_fleet(true, given.line_mbit_s));
  bench.write_fleet("two.toml", pipeline_fleet(false, given.line_mbit_s));
  const double slowdown = bench.fit_slowdown("one.toml", given.load, given.more);
  std::vector<double> apart, together, ratios;
  double one_step_s = 0, two_step_s = 0;
  for (int turn = 0; turn < given.num_turns; ++turn) {
    together.push_back(
        step_rate(bench, bench.train("one.toml", slowdown, given.steps, given.more), one_step_s));
    apart.push_back(
        step_rate(bench, bench.train("two.toml", slowdown, given.steps, given.more), two_step_s));
    ratios.push_back(apart.back() / together.back());
    std::fprintf(stderr,
                 "turn %d: %.0f tokens/s over two sites (%.3f s a step), %.0f in one (%.3f s), "
                 "ratio %.4f\n",
                 turn,
                 apart.back(),
                 two_step_s,
                 together.back(),
                 one_step_s,
                 ratios.back());
  }
  const auto plan =
      nlohmann::json::parse(read_text_file(bench.folder() / "runs" / "pipeline" / "plan.json"));
  const auto& pipeline = plan["pipelines"][0];
  report.metrics["two_sites_tokens_s"] = median(apart);
  report.metrics["one_site_tokens_s"] = median(together);
  report.metrics["one_site_step_s"] = one_step_s;
  report.metrics["two_sites_step_s"] = two_step_s;
  report.metrics["predicted_step_s"] = plan["sites"][0]["predicted_step_s"];
  report.metrics["microbatch_sequences"] = pipeline["microbatch"];
  report.metrics["first_stage_in_flight"] = pipeline["stages"][0].value("in_flight", 2);
  report.metrics["line_mbit_s"] = plan["predicted_line_mbit_s"];
  report.metrics["predicted_ratio"] = 1 - plan.value("predicted_line_share", 0.0);
  report.metrics["slowdown"] = slowdown;
  report.ratio = median(ratios);
  report.target = 0.95;
}

}  // namespace pelago::bench
