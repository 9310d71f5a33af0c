#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>

#include "sites/simulated_run.h"

namespace pelago::sites {
namespace {

// PELAGO_SEEDS widens the search; the default keeps each case below a second.
uint64_t num_seeds(uint64_t usual) {
  const char* wanted = std::getenv("PELAGO_SEEDS");
  return wanted != nullptr ? std::strtoull(wanted, nullptr, 10) : usual;
}

bool all_equal(const std::vector<std::string>& hashes) {
  return std::adjacent_find(hashes.begin(), hashes.end(), std::not_equal_to<>()) == hashes.end();
}

TEST_CASE("three sites on a good network commit every exchange and end with the same weights") {
  SimulatedRun run({});
  CHECK(run.run() == "");
  // 9 regular exchanges fit into 40 steps at 4 steps an interval, then each fragment once more.
  CHECK(run.rounds().num_commits() == 9 + 3);
  CHECK(run.last_steps() == std::vector<int64_t>{40, 40, 40});
  CHECK(all_equal(run.last_hashes()));
  CHECK(run.rounds().num_differing() == 0);
}

TEST_CASE("two runs of the same seed end with the same bits") {
  const auto last_hash = [] {
    SimulatedRun run({.num_sites = 2});
    REQUIRE(run.run() == "");
    return run.last_hashes().front();
  };
  CHECK(last_hash() == last_hash());
}

TEST_CASE("loss, delay and doubled frames lose no commit and change no bit") {
  SimulatedRun calm({.num_sites = 3});
  REQUIRE(calm.run() == "");
  for (uint64_t seed = 1; seed <= num_seeds(20); ++seed) {
    CAPTURE(seed);
    SimulatedRun run(
        {.num_sites = 3, .network = {.loss = 0.1, .doubling = 0.1, .jitter_s = 0.2, .seed = seed}});
    REQUIRE(run.run() == "");
    CHECK(run.last_steps() == std::vector<int64_t>{40, 40, 40});
    REQUIRE(all_equal(run.last_hashes()));
  }
}

TEST_CASE("sites that crash at any moment come back, and all agree at every commit") {
  int64_t num_restarts = 0;
  for (uint64_t seed = 1; seed <= num_seeds(40); ++seed) {
    CAPTURE(seed);
    SimulatedRun run({.num_sites = 2 + static_cast<int64_t>(seed % 3),
                      .num_crashes = 3,
                      .network = {.loss = 0.05, .doubling = 0.05, .jitter_s = 0.1, .seed = seed}});
    REQUIRE(run.run() == "");
    REQUIRE(all_equal(run.last_hashes()));
    REQUIRE(run.rounds().phase() == RoundMachine::RunPhase::kOver);
    num_restarts += run.num_restarts();
  }
  CHECK(num_restarts > 0);  // the fault has fired
}

TEST_CASE("a site that freezes is left out and finds back to the others' weights") {
  for (uint64_t seed = 1; seed <= num_seeds(20); ++seed) {
    CAPTURE(seed);
    SimulatedRun run(
        {.num_sites = 3, .has_zombie = true, .network = {.jitter_s = 0.05, .seed = seed}});
    REQUIRE(run.run() == "");
    // Frozen at the very end it misses the end: the others do not wait for ever.
    CHECK(run.last_steps().size() >= 2);
    CHECK(std::all_of(
        run.last_steps().begin(), run.last_steps().end(), [](int64_t step) { return step == 40; }));
    REQUIRE(all_equal(run.last_hashes()));
  }
}

TEST_CASE("a stop at any moment ends all sites at the same quiet step") {
  for (uint64_t seed = 1; seed <= num_seeds(20); ++seed) {
    CAPTURE(seed);
    const SimulatedRunOptions options{
        .num_sites = 3,
        .stop_after_s = 1.5 + 0.6 * static_cast<double>(seed % 20),
        .network = {.loss = 0.05, .doubling = 0.05, .jitter_s = 0.1, .seed = seed}};
    SimulatedRun run(options);
    REQUIRE(run.run() == "");
    for (const int64_t step : run.last_steps()) {
      CHECK(step == run.last_steps().front());
      CHECK(options.schedule.is_quiet(step));
    }
    REQUIRE(all_equal(run.last_hashes()));
  }
}

}  // namespace
}  // namespace pelago::sites
