// Trains with the built program on a made-up fleet and reads its summary: what benchmarks of whole
// runs share. Each run is a process tree of its own, as a user would start it.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "base/threads.h"

namespace pelago::bench {

namespace fs = std::filesystem;

/// A folder with a dataset of the machine's C and C++ headers, kept between runs of a benchmark.
class FleetBench {
 public:
  explicit FleetBench(const std::string& job_toml)
      : folder_(fs::temp_directory_path() / "pelago-bench") {
    fs::create_directories(folder_);
    write_file(folder_ / "job.toml", job_toml);
    if (fs::exists(folder_ / "data" / "dataset.json")) return;
    call(
        "data build --from /usr/include --glob '*.h,*.hpp' --out data --max-mb 8 --vocab-size 8192 "
        "--quiet");
  }

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
  /// a probe of it in probe.json.
  double fit_slowdown(const std::string& fleet, double load) const {
    constexpr double kFirst = 1200;  // slow enough for a 10M model, fast enough to measure
    const auto probed = nlohmann::json::parse(call(fmt::format(
        "probe job.toml --fleet {} --set emulation.slowdown={} --json --quiet", fleet, kFirst)));
    double busy = 0;
    for (const auto& [device, profile] : probed["devices"].items())
      busy += profile["host_busy_ratio"].get<double>();
    const double slowdown =
        kFirst * std::max(0.05, busy / (load * static_cast<double>(allowed_cores().size())));
    call(fmt::format(
        "probe job.toml --fleet {} --set emulation.slowdown={:.1f} --quiet", fleet, slowdown));
    return slowdown;
  }

  /// The summary of one run.
  nlohmann::json train(const std::string& fleet, double slowdown, int64_t steps) const {
    return nlohmann::json::parse(
        call(fmt::format("train job.toml --fleet {} --probe probe.json --fresh --json --quiet "
                         "--set emulation.slowdown={:.1f} --set train.steps={}",
                         fleet,
                         slowdown,
                         steps)));
  }

 private:
  fs::path folder_;
};

inline double median(std::vector<double> values) {
  std::nth_element(values.begin(),
                   values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

}  // namespace pelago::bench
