// The simulation is worth what it finds: each of these bugs must turn it red.
#include <doctest/doctest.h>

#include "sites/simulation/simulated_run.h"

namespace pelago::sites {
namespace {

TEST_CASE("every planted bug is found, and the same seeds are clean without it") {
  constexpr uint64_t kSeedsMax = 2000;
  CHECK(planted_bugs().size() >= 30);
  uint64_t worst = 0;
  const auto options_of = [](const PlantedBug& bug, uint64_t seed) {
    SimulatedRunOptions options = any_run(seed);
    options.limit_s = 250;
    if (bug.provoke) bug.provoke(options);
    return options;
  };
  for (const PlantedBug& bug : planted_bugs()) {
    CAPTURE(std::string(bug.name));
    uint64_t seed = 1;
    std::string found;
    for (; seed <= kSeedsMax && found.empty(); ++seed) {
      SimulatedRunOptions options = options_of(bug, seed);
      options.bug = &bug;
      SimulatedRun run(options);
      found = run.run();
    }
    CHECK_FALSE(found.empty());
    if (!bug.provoke) worst = std::max(worst, seed - 1);
    for (uint64_t clean = 1; bug.provoke && clean < seed; ++clean) {
      CAPTURE(clean);
      CHECK(SimulatedRun(options_of(bug, clean)).run() == "");
    }
    if (seed > 60) MESSAGE(bug.name << " at seed " << seed - 1 << ": " << found.substr(0, 120));
  }
  for (uint64_t seed = 1; seed <= worst; ++seed) {
    CAPTURE(seed);
    CHECK(SimulatedRun(options_of({}, seed)).run() == "");
  }
  MESSAGE(planted_bugs().size() << " planted bugs, the last found at seed " << worst);
}

}  // namespace
}  // namespace pelago::sites
