// The part of the chaos runs that every change meets: a minute of faults on real processes.
#include <doctest/doctest.h>

#include <algorithm>

#include "base/files.h"
#include "chaos/runner.h"
#include "cli/small_run.h"

namespace pelago::chaos {
namespace {

std::vector<Verdict> inject(Stage stage, const std::vector<std::string>& ids) {
  const testing::Scratch scratch("chaos-test");
  testing::prepare(scratch.path());
  std::vector<Fault> faults;
  for (const Fault& fault : catalogue()) {
    if (std::find(ids.begin(), ids.end(), fault.id) != ids.end()) faults.push_back(fault);
  }
  REQUIRE(faults.size() == ids.size());
  return run_stage(stage,
                   faults,
                   {.programs = program_path().parent_path(),
                    .data = scratch.path() / "data",
                    .scratch = scratch.path() / "runs",
                    .num_sites = 3});
}

void check(const std::vector<Verdict>& verdicts) {
  for (const Verdict& verdict : verdicts) {
    INFO(verdict.id << ": " << verdict.outcome.proof << "; " << verdict.outcome.seen);
    CHECK_FALSE(verdict.outcome.proof.empty());
    for (const std::string& wrong : verdict.outcome.wrong) FAIL_CHECK(wrong);
  }
}

TEST_CASE("killed workers, a stopped site and a killed coordinator change no bit of any loss") {
  check(inject(Stage::kSteady, {"F03", "F05", "F12"}));
}

TEST_CASE("sites that are killed as they join, or two at once, come back") {
  check(inject(Stage::kChanging, {"F38", "F39"}));
}

}  // namespace
}  // namespace pelago::chaos
