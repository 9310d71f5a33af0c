// What does the line cost? Tokens/s of the demo's two sites with a line over the same without it:
// the runs take turns, medians of three. The line is emulated inside the transport, or made of
// packets that are delayed and lost between two network namespaces: 100 Mbit/s, or 20 with deltas
// in thin form, and a round trip of 60 ms and a loss of 0.1 %. `packet` also trains in step over
// the same line, as data parallel training would.
#include <array>

#include "bench/fleet_run.h"
#include "bench/report.h"
#include "bench/sites/line_run.h"
#include "bench/sites/pipeline_case.h"

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

struct Line {
  double rate_mbit, rtt_ms;
  bool is_emulated = false;                                     // inside the transport
  std::array<const char*, 2> listen{"127.0.0.1", "127.0.0.1"};  // of the sites
};

std::string fleet_of(const Line& line) {
  return fmt::format(R"(
[emulation]
slowdown = 1000
[[site]]
name = "lingang"
listen = "{}"
[[site.device]]
device = "emulated:a100"
[[site.device]]
device = "emulated:h20"
[[site]]
name = "guizhou"
listen = "{}"
[[site.device]]
device = "emulated:910b"
count = 2
[[link]]
between = ["lingang", "guizhou"]
bandwidth_mbit_s = {}
rtt_ms = {}
emulate = {}
)",
                     line.listen[0],
                     line.listen[1],
                     line.rate_mbit,
                     line.rtt_ms,
                     line.is_emulated);
}

constexpr int kPacketSteps = 32;
constexpr int kRoundSteps = 8;

/// Sent a parameter and round by the second site, which has no coordinator beside it: what leaves
/// it is its own. shorter: a run of fewer rounds, whose bytes and rounds do not count: joining and
/// the final exchanges, which are never thin, then fall out.
double wire_bytes(const FleetBench& bench, const LineRun& run, const LineRun& shorter = {}) {
  const auto plan =
      nlohmann::json::parse(read_text_file(bench.folder() / "runs" / "two-sites" / "plan.json"));
  const auto bytes_of = [](const LineRun& of) {
    const auto found = of.exchanged_bytes.find("guizhou");
    return found == of.exchanged_bytes.end() ? 0.0 : static_cast<double>(found->second);
  };
  // A fragment is a quarter of the parameters or so: fragments are cut at whole tensors.
  const double num_rounds = static_cast<double>(run.num_commits - shorter.num_commits) /
                            plan["exchange"]["fragments"].get<double>();
  return (bytes_of(run) - bytes_of(shorter)) / (plan["num_parameters"].get<double>() * num_rounds);
}

void measure_packets(Report& report, bool is_thin, int num_turns) {
  if (const auto obstacle = wan::PacketLine::obstacle()) fail_usage("two_sites: {}", *obstacle);
  const double rate_mbit = is_thin ? 20 : 100;
  const FleetBench bench(kJob);
  bench.write_fleet("line.toml", fleet_of({rate_mbit, 60, false, {"10.77.0.1", "10.77.0.2"}}));
  bench.write_fleet("noline.toml", fleet_of({rate_mbit, 60}));
  const double slowdown = bench.fit_slowdown("noline.toml", 0.40);
  wan::PacketLine line({.num_sites = 2,
                        .rate_mbit = fmt::format("{}", rate_mbit),
                        .rtt_ms = 60,
                        .loss_percent = "0.1"});
  const std::vector<std::string> sites{"lingang", "guizhou"};
  const auto words = [&](const std::string& fleet, int steps, const std::string& more) {
    return fmt::format(
        "--fleet {} --probe probe.json --set emulation.slowdown={:.1f} --set train.steps={} {}",
        fleet,
        slowdown,
        steps,
        more);
  };
  const std::string rounds = fmt::format(
      "--set sites.inner_steps={} {}", kRoundSteps, is_thin ? "--set sites.method=thin" : "");
  std::vector<double> with, without, ratios, bytes;
  LineRun shorter;
  if (is_thin) {
    shorter =
        run_by_hand(bench, "two-sites", sites, words("line.toml", kPacketSteps / 2, rounds), &line);
  }
  for (int turn = 0; turn < num_turns; ++turn) {
    const LineRun alone =
        run_by_hand(bench, "two-sites", sites, words("noline.toml", kPacketSteps, rounds), nullptr);
    const LineRun joined =
        run_by_hand(bench, "two-sites", sites, words("line.toml", kPacketSteps, rounds), &line);
    without.push_back(alone.tokens_s);
    with.push_back(joined.tokens_s);
    ratios.push_back(with.back() / without.back());
    report.metrics["wait_line_ratio"] = joined.wait_line_ratio;
    bytes.push_back(wire_bytes(bench, joined, shorter));
    std::fprintf(stderr,
                 "turn %d: %.0f tokens/s with the line, %.0f without, ratio %.4f, %.4f byte a "
                 "parameter and round\n",
                 turn,
                 with.back(),
                 without.back(),
                 ratios.back(),
                 bytes.back());
  }
  if (!is_thin) {
    const LineRun in_step = run_by_hand(
        bench, "two-sites", sites, words("line.toml", 6, "--set sites.method=sync"), &line);
    report.metrics["every_step_ratio"] = in_step.tokens_s / median(without);
  }
  report.metrics["with_line_tokens_s"] = median(with);
  report.metrics["without_line_tokens_s"] = median(without);
  report.metrics["wire_bytes_per_parameter_and_round"] = median(bytes);
  report.metrics["slowdown"] = slowdown;
  report.ratio = median(ratios);
  report.target = is_thin ? 0.95 : 0.98;
}

struct UnequalSite {
  const char* name;
  const char* device;
};
// Of about 1 : 0.55 : 0.4 in what a small model takes of them; the run says what it was.
constexpr std::array<UnequalSite, 3> kUnequal = {
    {{"lingang", "a100"}, {"guizhou", "rtx4090"}, {"ordos", "s4000"}}};

// Of 40 sequences the smallest share would be 8: one more or less is an eighth of its step.
constexpr int kUnequalBatch = 96;

std::string unequal_fleet(const std::vector<size_t>& chosen, bool has_line) {
  std::string fleet = "[emulation]\nslowdown = 1000\n";
  for (const size_t i : chosen) {
    fleet += fmt::format(
        "[[site]]\nname = \"{}\"\nlisten = \"{}\"\n[[site.device]]\ndevice = "
        "\"emulated:{}\"\n",
        kUnequal[i].name,
        has_line ? fmt::format("10.77.0.{}", i + 1) : "127.0.0.1",
        kUnequal[i].device);
  }
  for (const size_t i : chosen) {
    for (const size_t j : chosen) {
      if (i >= j) continue;
      fleet +=
          fmt::format("[[link]]\nbetween = [\"{}\", \"{}\"]\nbandwidth_mbit_s = 100\nrtt_ms = 60\n",
                      kUnequal[i].name,
                      kUnequal[j].name);
    }
  }
  return fleet;
}

void measure_unequal(Report& report, int num_turns, int num_steps) {
  if (const auto obstacle = wan::PacketLine::obstacle()) fail_usage("two_sites: {}", *obstacle);
  const FleetBench bench(kJob);
  bench.write_fleet("line.toml", unequal_fleet({0, 1, 2}, true));
  bench.write_fleet("noline.toml", unequal_fleet({0, 1, 2}, false));
  std::vector<std::string> sites;
  for (size_t i = 0; i < kUnequal.size(); ++i) {
    sites.emplace_back(kUnequal[i].name);
    bench.write_fleet(fmt::format("{}.toml", sites[i]), unequal_fleet({i}, false));
  }
  const double slowdown = bench.fit_slowdown("noline.toml", 0.40);
  wan::PacketLine line({.num_sites = 3, .rate_mbit = "100", .rtt_ms = 60, .loss_percent = "0.1"});
  std::vector<double> ratios, all;
  for (int turn = 0; turn < num_turns; ++turn) {
    const LineRun joined =
        run_by_hand(bench,
                    "two-sites",
                    sites,
                    fmt::format("--fleet line.toml --probe probe.json --set "
                                "emulation.slowdown={:.1f} --set train.steps={} --set "
                                "train.batch_sequences={}",
                                slowdown,
                                num_steps,
                                kUnequalBatch),
                    &line);
    const auto plan =
        nlohmann::json::parse(read_text_file(bench.folder() / "runs" / "two-sites" / "plan.json"));
    double sum = 0, first = 0;
    for (size_t i = 0; i < sites.size(); ++i) {
      const auto share = plan["sites"][i]["batch_sequences"].get<int64_t>();
      const double alone = bench.mean_tokens_a_second(
          fmt::format("{}.toml", sites[i]),
          slowdown,
          num_steps,
          fmt::format("--set train.batch_sequences={} --set train.exact_batch=true", share));
      if (i == 0) first = alone;
      sum += alone;
      report.metrics["share_" + sites[i]] = static_cast<double>(share);
      report.metrics["speed_" + sites[i]] = alone / first;
    }
    all.push_back(joined.tokens_s);
    ratios.push_back(joined.tokens_s / sum);
    report.metrics["wait_line_ratio"] = joined.wait_line_ratio;
    std::fprintf(stderr,
                 "turn %d: %.0f tokens/s together, %.0f as the sum of each alone, ratio %.4f\n",
                 turn,
                 joined.tokens_s,
                 sum,
                 ratios.back());
  }
  report.metrics["together_tokens_s"] = median(all);
  report.metrics["slowdown"] = slowdown;
  report.ratio = median(ratios);
  report.target = 0.97;
}

void measure(Report& report) {
  const FleetBench bench(kJob);
  bench.write_fleet("line.toml", fleet_of({200, 30, true}));
  bench.write_fleet("noline.toml", fleet_of({200, 30}));
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
  Program program("two_sites",
                  "What does the line between two sites cost?",
                  {"emulated", "packet", "packet20", "unequal", "pipeline"});
  int num_turns = 3, num_steps = 32;
  std::string more;
  program.options().add_option("--more", more, "of a pipeline: settings, as --set words");
  double line_mbit_s = 1000;
  program.options().add_option("--line-mbit-s", line_mbit_s, "of a pipeline's line, 20 ms long");
  program.options().add_option("--turns", num_turns, "of a packet-level line, medians of these");
  program.options().add_option("--steps", num_steps, "of a run of unequal sites");
  return program.run(argc, argv, [&](Report& report) {
    if (report.case_name == "emulated") {
      measure(report);
    } else if (report.case_name == "pipeline") {
      measure_pipeline(report, {.num_turns = num_turns, .line_mbit_s = line_mbit_s, .more = more});
    } else if (report.case_name == "unequal") {
      measure_unequal(report, num_turns, num_steps);
    } else {
      measure_packets(report, report.case_name == "packet20", num_turns);
    }
  });
}
