// chaos: injects the faults of the catalogue into runs of real processes, demands proof that each
// fired, and prints a table. scripts/chaos builds and starts it.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>

#include "base/error.h"
#include "base/files.h"
#include "chaos/runner.h"
#include "cli/small_run.h"

namespace pelago::chaos {
namespace {

struct Arguments {
  std::vector<std::string> ids;
  bool list = false, without_tests = false;
  int num_sites = 4;
};

void print_list() {
  for (const Fault& fault : catalogue()) {
    const std::string how = fault.inject != nullptr ? "injected"
                            : fault.test != nullptr ? std::string("by test, ") + fault.test
                                                    : std::string("not here: ") + fault.why_not;
    std::printf("%-4s %-48s %s\n", fault.id, fault.what, how.c_str());
  }
}

bool is_asked(const Arguments& arguments, const Fault& fault) {
  return arguments.ids.empty() ||
         std::find(arguments.ids.begin(), arguments.ids.end(), fault.id) != arguments.ids.end();
}

void refuse_unknown(const Arguments& arguments) {
  for (const std::string& id : arguments.ids) {
    const auto& faults = catalogue();
    const bool is_known = std::any_of(
        faults.begin(), faults.end(), [&](const Fault& fault) { return fault.id == id; });
    if (!is_known) fail_usage("--fault {}: not in the catalogue; see --list", id);
  }
}

std::vector<Verdict> run_stages(const Arguments& arguments, const RunnerOptions& options) {
  std::vector<Verdict> verdicts;
  for (const Stage stage : {Stage::kSteady, Stage::kChanging, Stage::kPackets}) {
    std::vector<Fault> faults;
    for (const Fault& fault : catalogue()) {
      if (is_asked(arguments, fault) && fault.inject != nullptr && fault.stage == stage) {
        faults.push_back(fault);
      }
    }
    if (faults.empty()) continue;
    if (const std::string obstacle = obstacle_of(stage); !obstacle.empty()) {
      for (const Fault& fault : faults) {
        std::printf("%-4s not here      %s: %s\n", fault.id, fault.what, obstacle.c_str());
      }
      continue;
    }
    RunnerOptions own = options;
    own.scratch /= std::to_string(static_cast<int>(stage));
    for (Verdict& verdict : run_stage(stage, faults, own)) verdicts.push_back(std::move(verdict));
  }
  return verdicts;
}

int run(const Arguments& arguments) {
  refuse_unknown(arguments);
  const testing::Scratch scratch("chaos");
  testing::prepare(scratch.path());
  const RunnerOptions options{.programs = program_path().parent_path(),
                              .data = scratch.path() / "data",
                              .scratch = scratch.path() / "runs",
                              .num_sites = arguments.num_sites};
  std::filesystem::create_directories(options.scratch);
  std::vector<Verdict> verdicts = run_stages(arguments, options);
  for (const Fault& fault : catalogue()) {
    if (!is_asked(arguments, fault)) continue;
    if (fault.test != nullptr && !arguments.without_tests) {
      verdicts.push_back(run_test(fault, options));
      print(verdicts.back(), fault.what);
    }
    if (fault.why_not != nullptr) {
      std::printf("%-4s not here      %s: %s\n", fault.id, fault.what, fault.why_not);
    }
  }
  const auto num_good = std::count_if(
      verdicts.begin(), verdicts.end(), [](const Verdict& verdict) { return verdict.is_good; });
  std::printf("%td of %zu held\n", num_good, verdicts.size());
  return num_good == static_cast<std::ptrdiff_t>(verdicts.size()) ? kExitDone : kExitFailed;
}

}  // namespace
}  // namespace pelago::chaos

int main(int argc, char** argv) {
  using namespace pelago::chaos;
  CLI::App app("injects faults into runs of real processes and demands proof that each fired");
  Arguments arguments;
  app.add_option("--fault", arguments.ids, "only these: F11 F16");
  app.add_flag("--list", arguments.list, "what there is, and how each fault is shown");
  app.add_flag("--no-tests", arguments.without_tests, "only what is injected");
  app.add_option("--sites", arguments.num_sites, "of the runs")->check(CLI::Range(3, 8));
  CLI11_PARSE(app, argc, argv);
  if (arguments.list) {
    print_list();
    return pelago::kExitDone;
  }
  try {
    return run(arguments);
  } catch (const pelago::Failure& failure) {
    std::fprintf(stderr, "chaos: %s\n", failure.what());
    return failure.exit_code();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "chaos: %s\n", error.what());
    return pelago::kExitFailed;
  }
}
