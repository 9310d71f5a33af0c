// The one form in which every benchmark answers. A bench is:
//   int main(int argc, char** argv) {
//     bench::Program program("tokenizer", "How fast does text become tokens?", {"c-headers"});
//     std::string from = "/usr/include";
//     program.options().add_option("--from", from, "folder of text");  // options of its own, if
//     any return program.run(argc, argv, [&](bench::Report& report) {
//       report.metrics["encode_mb_s"] = ...;                           // unit last in the name
//       report.ratio = report.metrics["encode_mb_s"] / 10;             // the headline figure
//       report.target = 1.0;
//     });
//   }
// People get a table; with --json the last line is one JSON object. report.case_name says which
// --case is asked for. Progress belongs on standard error.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/threads.h"

namespace pelago::bench {

struct Report {
  std::string bench;                      // the program's name
  std::string case_name;                  // which of its cases was run
  double ratio = 0.0;                     // the headline figure; >= target is good,
  bool is_cost = false;                   // unless it is a cost: then <= target is
  double target = 0.0;                    // what ratio should reach
  std::map<std::string, double> metrics;  // every other figure, unit last in the name
  std::vector<std::string> notes;         // lines under the table: what a reader must know
};

/// The middle of some values, at least one; of an even number the upper of the two.
inline double median(std::vector<double> values) {
  std::nth_element(values.begin(),
                   values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

/// The CPU's model and the number of cores this process may use.
inline std::string host_name_and_cores() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string model = "unknown CPU";
  for (std::string line; std::getline(cpuinfo, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) {
      model = line.substr(colon + 2);
      break;
    }
  }
  return fmt::format("{}, {} cores", model, allowed_cores().size());
}

/// The commit that scripts/bench measured.
inline std::string measured_commit() {
  const char* commit = std::getenv("PELAGO_COMMIT");
  return commit != nullptr && *commit != '\0' ? commit : "unknown";
}

inline bool is_reached(const Report& report) {
  return report.is_cost ? report.ratio <= report.target : report.ratio >= report.target;
}

inline void print_table(const Report& report) {
  fmt::print("{} --case {}\n", report.bench, report.case_name);
  fmt::print("  host {}, commit {}\n", host_name_and_cores(), measured_commit());
  for (const auto& [name, value] : report.metrics) fmt::print("  {:<40} {:>14.6g}\n", name, value);
  fmt::print("  {:<40} {:>14.4f}  target {:.4g}: {}\n",
             "ratio",
             report.ratio,
             report.target,
             is_reached(report) ? "reached" : "MISSED");
  for (const std::string& note : report.notes) fmt::print("  {}\n", note);
}

/// One line; the keys in the order that readers of a log expect. A figure that is not finite is
/// written as null.
inline void print_json(const Report& report) {
  nlohmann::ordered_json json;
  json["bench"] = report.bench;
  json["case"] = report.case_name;
  json["commit"] = measured_commit();
  json["host"] = host_name_and_cores();
  json["ratio"] = report.ratio;
  json["target"] = report.target;
  json["metrics"] = report.metrics;
  fmt::print("{}\n", json.dump());
}

class Program {
 public:
  /// cases: what --case may name; the first one is the default.
  Program(std::string bench, const std::string& question, std::vector<std::string> cases)
      : bench_(std::move(bench)), app_(question, bench_), case_name_(cases.front()) {
    app_.add_option("--case", case_name_, "which case to run")
        ->check(CLI::IsMember(std::move(cases)))
        ->capture_default_str();
    app_.add_flag("--json", json_, "print one JSON object on the last line instead of a table");
  }

  /// For options of the bench's own; call before run().
  CLI::App& options() { return app_; }

  /// Parses argv, measures, prints. Returns the exit code for main; a missed target is no failure.
  int run(int argc, char** argv, const std::function<void(Report&)>& measure) {
    try {
      app_.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      return app_.exit(error) == 0 ? kExitDone : kExitUsage;
    }
    Report report;
    report.bench = bench_;
    report.case_name = case_name_;
    try {
      measure(report);
    } catch (const Failure& failure) {
      fmt::print(stderr, "bench {}: {}\n", bench_, failure.what());
      return failure.exit_code();
    } catch (const std::exception& error) {
      fmt::print(stderr, "bench {}: {}\n", bench_, error.what());
      return kExitFailed;
    }
    json_ ? print_json(report) : print_table(report);
    return kExitDone;
  }

 private:
  std::string bench_;
  CLI::App app_;
  std::string case_name_;
  bool json_ = false;
};

}  // namespace pelago::bench
