// How near does generation come to the memory's bandwidth? A token of one sequence reads every
// weight once and does little with it: bytes read a second, over what reading memory alone reaches,
// taken in turns in one run. Sixteen sequences share each read; there the figure is tokens a
// second.
#include <algorithm>

#include "bench/report.h"
#include "bench/serve/served_model.h"

namespace pelago::bench {
namespace {

using serve::WeightDtype;

constexpr int kRounds = 9;
constexpr int kSteps = 12;

WeightDtype dtype_of(const std::string& case_name) {
  if (case_name.ends_with("int8")) return WeightDtype::kInt8;
  return case_name.ends_with("int4") ? WeightDtype::kInt4 : WeightDtype::kBf16;
}

void measure_steps(Report& report, size_t num_sequences, double target_tok_s) {
  serve::RunnerOptions options = bound_options(dtype_of(report.case_name));
  options.num_pages = static_cast<int64_t>(num_sequences) * 16;
  const auto runner = open_cpu_runner(served_folder("1b"), options);
  chips::packed::CoreTeam team(options.num_threads, options.cores);
  MemoryMeter memory(team);
  Generation generation(*runner, num_sequences);
  generation.read_prompts(128);
  std::vector<double> rates, bandwidths, shares;
  for (int round = 0; round < kRounds; ++round) {
    const double before = memory.measure();
    generation.step();  // the team has slept
    const double begin = seconds_now();
    for (int step = 0; step < kSteps; ++step) generation.step();
    const double step_s = (seconds_now() - begin) / kSteps;
    const double bandwidth = std::max(before, memory.measure());
    rates.push_back(static_cast<double>(num_sequences) / step_s);
    bandwidths.push_back(bandwidth);
    shares.push_back(static_cast<double>(runner->weight_bytes()) / step_s / bandwidth);
  }
  report.metrics["decode_tok_s"] = median(rates);
  report.metrics["decode_best_tok_s"] = *std::max_element(rates.begin(), rates.end());
  report.metrics["memory_read_gb_s"] = median(bandwidths) / 1e9;
  report.metrics["weights_gb"] = static_cast<double>(runner->weight_bytes()) / 1e9;
  report.metrics["bandwidth_share"] = median(shares);
  bind_to_cores(options.cores);
  report.ratio = num_sequences == 1 ? median(shares) : median(rates) / target_tok_s;
  report.target = num_sequences == 1 ? 0.85 : 1.0;
}

/// From nothing to the first token, of a folder whose files the system has in memory.
void measure_start(Report& report, const std::string& model) {
  const std::filesystem::path folder =
      model.empty() ? served_folder("1b") : std::filesystem::path(model);
  std::vector<double> times;
  for (int round = 0; round < 3; ++round) {
    const double begin = seconds_now();
    const auto runner = open_cpu_runner(folder, bound_options(WeightDtype::kAsStored));
    report.metrics["open_s"] = seconds_now() - begin;
    Generation generation(*runner, 1);
    generation.read_prompts(1);
    times.push_back(seconds_now() - begin);
  }
  report.metrics["first_token_s"] = median(times);
  report.ratio = 1.5 / median(times);
  report.target = 1.0;
}

}  // namespace
}  // namespace pelago::bench

int main(int argc, char** argv) {
  using namespace pelago::bench;
  Program program(
      "decode",
      "How near does generation come to the memory's bandwidth?",
      {"bf16", "int8", "int4", "batch16-bf16", "batch16-int8", "batch16-int4", "start"});
  std::string model;
  program.options().add_option("--model", model, "a folder for start, such as one in int8");
  return program.run(argc, argv, [&](Report& report) {
    if (report.case_name == "start") return measure_start(report, model);
    if (!report.case_name.starts_with("batch16")) return measure_steps(report, 1, 0);
    measure_steps(report, 16, report.case_name == "batch16-bf16" ? 190 : 215);
  });
}
