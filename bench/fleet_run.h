// Trains with the built program on a made-up fleet and reads its summary: what benchmarks of whole
// runs share. Each run is a process tree of its own, as a user would start it.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "base/threads.h"
#include "bench/report.h"

namespace pelago::bench {

namespace fs = std::filesystem;

/// A folder of this process, with a dataset of the machine's C and C++ headers that is kept between
/// runs of a benchmark.
class FleetBench {
 public:
  explicit FleetBench(const std::string& job_toml, int vocab_size = 8192)
      : shared_(fs::temp_directory_path() / "pelago-bench"),
        folder_(shared_ / std::to_string(::getpid())) {
    fs::create_directories(folder_);
    write_file(folder_ / "job.toml", job_toml);
    const std::string data = fmt::format("data-{}", vocab_size);
    if (!fs::exists(shared_ / data / "dataset.json")) {
      call(
          fmt::format("data build --from /usr/include --glob '*.h,*.hpp' --out ../{} --max-mb 8 "
                      "--vocab-size {} --quiet",
                      data,
                      vocab_size));
    }
    fs::create_directory_symlink("../" + data, folder_ / "data");
  }
  FleetBench(const FleetBench&) = delete;
  FleetBench& operator=(const FleetBench&) = delete;
  ~FleetBench() {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }

  const fs::path& folder() const { return folder_; }

  /// Standard output of `pelago ARGUMENTS`. Throws Failure with its last words if it fails.
  std::string call(const std::string& arguments) const {
    const fs::path program = program_path().parent_path() / "pelago";
    const std::string command =
        fmt::format("cd {} && {} {} 2>stderr.txt", folder_.string(), program.string(), arguments);
    std::FILE* pipe = ::popen(command.c_str(), "r");
    if (pipe == nullptr) fail("cannot start {}", program.string());
    std::string out;
    char buffer[4096];
    while (const size_t got = std::fread(buffer, 1, sizeof buffer, pipe)) out.append(buffer, got);
    if (::pclose(pipe) != 0) {
      const std::string err = read_text_file(folder_ / "stderr.txt");
      fail("pelago {}: {}", arguments, err.substr(err.size() > 600 ? err.size() - 600 : 0));
    }
    return out;
  }

  void write_fleet(const std::string& name, const std::string& toml) const {
    write_file(folder_ / name, toml);
  }

  /// The slowdown at which emulating this fleet keeps `load` of the host's processors busy; leaves
  /// a probe of it in probe.json. more: further options of the runs to come.
  double fit_slowdown(const std::string& fleet, double load, const std::string& more = "") const {
    constexpr double kFirst = 6000;  // slow enough for any of these fleets
    const std::string probe = fmt::format("probe job.toml --quiet --fleet {} {}", fleet, more);
    call(fmt::format("{} --set emulation.slowdown={}", probe, kFirst));
    const auto plan = nlohmann::json::parse(call(fmt::format(
        "plan job.toml --fleet {} --probe probe.json --json --set emulation.slowdown={} {}",
        fleet,
        kFirst,
        more)));
    const double busy = plan["host_load"].get<double>();
    const double slowdown =
        kFirst * std::max(0.01, busy / (load * static_cast<double>(allowed_cores().size())));
    call(fmt::format("{} --set emulation.slowdown={:.1f}", probe, slowdown));
    return slowdown;
  }

  /// Steps of the run in this folder's job, as metrics.jsonl has them.
  std::vector<nlohmann::json> steps_of(const fs::path& run) const {
    const fs::path file = folder_ / run / "metrics.jsonl";
    std::vector<nlohmann::json> steps;
    if (!fs::exists(file)) return steps;
    std::istringstream lines(read_text_file(file));
    for (std::string line; std::getline(lines, line);) {
      auto step = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
      if (!step.is_discarded() && step.contains("ranks")) steps.push_back(std::move(step));
    }
    return steps;
  }

  /// Tokens a second of one run: of its median step, the first left out, since memory is mapped and
  /// pipelines meet then.
  double tokens_a_second(const std::string& fleet,
                         double slowdown,
                         int64_t steps,
                         const std::string& more = "") const {
    std::vector<double> rates;
    for (const auto& step : steps_of(train(fleet, slowdown, steps, more)["run"])) {
      if (step["step"].get<int64_t>() < 2) continue;
      rates.push_back(step["tokens"].get<double>() / step["step_s"].get<double>());
    }
    if (rates.empty()) fail("the run of {} has no steps to measure", fleet);
    return median(rates);
  }

  /// The same over all steps but the first two: rare work counts.
  double mean_tokens_a_second(const std::string& fleet,
                              double slowdown,
                              int64_t steps,
                              const std::string& more = "") const {
    double tokens = 0, seconds = 0;
    for (const auto& step : steps_of(train(fleet, slowdown, steps, more)["run"])) {
      if (step["step"].get<int64_t>() < 3) continue;
      tokens += step["tokens"].get<double>();
      seconds += step["step_s"].get<double>();
    }
    if (seconds == 0) fail("the run of {} has no steps to measure", fleet);
    return tokens / seconds;
  }

  /// The summary of one run.
  nlohmann::json train(const std::string& fleet,
                       double slowdown,
                       int64_t steps,
                       const std::string& more = "") const {
    return nlohmann::json::parse(
        call(fmt::format("train job.toml --fleet {} --probe probe.json --fresh --json --quiet "
                         "--set emulation.slowdown={:.1f} --set train.steps={} {}",
                         fleet,
                         slowdown,
                         steps,
                         more)));
  }

 private:
  fs::path shared_, folder_;
};

}  // namespace pelago::bench
