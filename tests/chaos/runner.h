// Runs what the catalogue names: the faults of one stage one after another in one run of real
// processes, judged one by one and, when it has ended, as a whole.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "chaos/catalogue.h"

namespace pelago::chaos {

struct RunnerOptions {
  std::filesystem::path programs;  // pelago and the tests
  std::filesystem::path data;      // a dataset
  std::filesystem::path scratch;   // an empty folder
  int num_sites = 4;
};

struct Verdict {
  std::string id;
  Outcome outcome;
  bool is_good = false;
  std::string word;  // "held", "FAILED", "did not fire", "passed", "not here"
};

/// Why this stage cannot be set up here; empty: it can.
std::string obstacle_of(Stage stage);

/// The faults must all be of one stage. The last verdict, "all", is of the run as a whole.
std::vector<Verdict> run_stage(Stage stage,
                               const std::vector<Fault>& faults,
                               const RunnerOptions& options);
/// Runs the test that stands for a fault.
Verdict run_test(const Fault& fault, const RunnerOptions& options);

void print(const Verdict& verdict, const std::string& what);

}  // namespace pelago::chaos
