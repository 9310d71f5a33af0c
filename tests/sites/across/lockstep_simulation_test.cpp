// Runs of sites in step in simulation, and whether it finds what is wrong.
#include <doctest/doctest.h>

#include <cstdlib>

#include "sites/simulation/lockstep/lockstep_run.h"

namespace pelago::sites {
namespace {

// PELAGO_SEEDS widens the search, PELAGO_FIRST_SEED begins it at the seed that a failed run
// printed.
uint64_t number_from(const char* variable, uint64_t usual) {
  const char* wanted = std::getenv(variable);
  return wanted != nullptr ? std::strtoull(wanted, nullptr, 10) : usual;
}

TEST_CASE("sites in step on a good network do every step once, and end alike") {
  LockstepRun run({});
  CHECK(run.run() == "");
  CHECK_FALSE(run.was_given_up());
  CHECK(run.num_restarts() == 0);
  CHECK(run.truth().num_repeated() == 0);
}

TEST_CASE(
    "whatever fails in whatever order, sites in step do each step together and once, or give up "
    "with a site's name") {
  int64_t num_restarts = 0, num_given_up = 0, num_stopped = 0, num_lines_lost = 0, num_refused = 0;
  int64_t num_repeated = 0, num_fetched = 0;
  const uint64_t first = number_from("PELAGO_FIRST_SEED", 1);
  const uint64_t num_seeds = number_from("PELAGO_SEEDS", 100);
  for (uint64_t seed = first; seed < first + num_seeds; ++seed) {
    CAPTURE(seed);
    LockstepRun run(any_lockstep_run(seed));
    REQUIRE(run.run() == "");
    num_restarts += run.num_restarts();
    num_given_up += run.was_given_up() ? 1 : 0;
    num_stopped += run.was_stopped() ? 1 : 0;
    num_lines_lost += run.num_lines_lost() > 0 ? 1 : 0;
    num_refused += run.num_refused();
    num_repeated += run.truth().num_repeated();
    num_fetched += run.num_fetched();
  }
  MESSAGE("restarts of sites " << num_restarts << ", runs given up " << num_given_up << ", stopped "
                               << num_stopped << ", with a line lost " << num_lines_lost
                               << ", refused messages " << num_refused << ", steps repeated "
                               << num_repeated << ", checkpoints fetched " << num_fetched);
  CHECK(num_restarts > 0);  // the faults have fired
  CHECK(num_given_up > 0);
  CHECK(num_stopped > 0);
  CHECK(num_lines_lost > 0);
  CHECK(num_refused > 0);
  CHECK(num_repeated > 0);
  CHECK(num_fetched > 0);
  CHECK(2 * static_cast<uint64_t>(num_given_up) < num_seeds);  // most faults are got over
}

TEST_CASE("a run in step replays exactly from its seed") {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    CAPTURE(seed);
    LockstepRun once(any_lockstep_run(seed)), again(any_lockstep_run(seed));
    REQUIRE(once.run() == again.run());
    CHECK(once.trace() == again.trace());
    CHECK(once.virtual_s() == again.virtual_s());
  }
}

TEST_CASE("every bug planted in runs in step is found, and the same seeds are clean without it") {
  constexpr uint64_t kSeedsMax = 200;
  const auto options_of = [](const LockstepBug& bug, uint64_t seed) {
    LockstepRunOptions options = any_lockstep_run(seed);
    options.limit_s = 250;
    if (bug.provoke) bug.provoke(options);
    return options;
  };
  uint64_t worst = 0;
  for (const LockstepBug& bug : lockstep_bugs()) {
    CAPTURE(std::string(bug.name));
    std::string found;
    uint64_t seed = 1;
    for (; seed <= kSeedsMax && found.empty(); ++seed) {
      LockstepRunOptions options = options_of(bug, seed);
      CHECK(LockstepRun(options).run() == "");
      options.bug = &bug;
      found = LockstepRun(options).run();
    }
    CHECK_FALSE(found.empty());
    worst = std::max(worst, seed - 1);
  }
  MESSAGE(lockstep_bugs().size() << " planted bugs, the last found at seed " << worst);
}

}  // namespace
}  // namespace pelago::sites
