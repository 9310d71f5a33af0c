#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>

#include "base/clock.h"
#include "sites/simulation/simulated_run.h"

namespace pelago::sites {
namespace {

// PELAGO_SEEDS widens the search; the default keeps each case below a second.
uint64_t num_seeds(uint64_t usual) {
  const char* wanted = std::getenv("PELAGO_SEEDS");
  return wanted != nullptr ? std::strtoull(wanted, nullptr, 10) : usual;
}

// Where the search begins: the seed that a failed run printed.
uint64_t first_seed() {
  const char* wanted = std::getenv("PELAGO_FIRST_SEED");
  return wanted != nullptr ? std::strtoull(wanted, nullptr, 10) : 1;
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
  CHECK(run.num_differing() == 0);
}

TEST_CASE("two runs of the same seed end with the same bits") {
  const auto last_hash = [] {
    SimulatedRun run({.num_sites = 2});
    REQUIRE(run.run() == "");
    return run.last_hashes().front();
  };
  CHECK(last_hash() == last_hash());
}

TEST_CASE("thin exchanges too survive crashes on a bad network and end with the same weights") {
  for (uint64_t seed = first_seed(); seed < first_seed() + num_seeds(20); ++seed) {
    CAPTURE(seed);
    SimulatedRun run({.num_sites = 3,
                      .num_crashes = 2,
                      .bits = 2,
                      .network = {.loss = 0.1, .doubling = 0.1, .jitter_s = 0.2, .seed = seed}});
    REQUIRE(run.run() == "");
    REQUIRE(all_equal(run.last_hashes()));
  }
}

TEST_CASE("loss, delay and doubled frames lose no commit and change no bit") {
  SimulatedRun calm({.num_sites = 3});
  REQUIRE(calm.run() == "");
  uint64_t num_late = 0;
  for (uint64_t seed = first_seed(); seed < first_seed() + num_seeds(20); ++seed) {
    CAPTURE(seed);
    SimulatedRun run(
        {.num_sites = 3, .network = {.loss = 0.1, .doubling = 0.1, .jitter_s = 0.2, .seed = seed}});
    REQUIRE(run.run() == "");
    // One that fell behind and began anew may come back when the others have finished.
    CHECK(run.num_finished() >= 2);
    num_late += run.num_finished() == 2;
    for (const int64_t steps : run.last_steps()) CHECK(steps == 40);
    REQUIRE(all_equal(run.last_hashes()));
  }
  CHECK(num_late <= num_seeds(20) / 40);
}

TEST_CASE("sites that crash at any moment come back, and all agree at every commit") {
  int64_t num_restarts = 0;
  for (uint64_t seed = first_seed(); seed < first_seed() + num_seeds(40); ++seed) {
    CAPTURE(seed);
    SimulatedRun run({.num_sites = 2 + static_cast<int64_t>(seed % 3),
                      .num_crashes = 3,
                      .network = {.loss = 0.05, .doubling = 0.05, .jitter_s = 0.1, .seed = seed}});
    REQUIRE(run.run() == "");
    REQUIRE(all_equal(run.last_hashes()));
    num_restarts += run.num_restarts();
  }
  CHECK(num_restarts > 0);  // the fault has fired
}

SimulatedRunOptions joining_run(uint64_t seed) {
  return {.num_sites = 4,
          .num_crashes = 5,
          .lies = 0.5,
          .restart_s = 0.5,  // two of them are away at once, now and then
          .network = {.loss = 0.03, .jitter_s = 0.1, .seed = seed}};
}

SimulatedRunOptions run_with_power_cut(uint64_t seed) {
  SimulatedRunOptions options = any_run(seed);
  options.has_power_cut = options.loses_disk = true;
  options.faults_until_s = 12;
  return options;
}

TEST_CASE("joiners take leaves from their disks and from honest donors, whatever site0 sends") {
  int64_t num_lies = 0, num_fetched = 0, num_kept = 0;
  for (uint64_t seed = first_seed(); seed < first_seed() + num_seeds(20); ++seed) {
    CAPTURE(seed);
    SimulatedRun run(joining_run(seed));
    REQUIRE(run.run() == "");
    REQUIRE(all_equal(run.last_hashes()));
    num_lies += run.num_lies();
    num_fetched += run.num_leaves_fetched();
    num_kept += run.num_leaves_kept();
  }
  CHECK(num_lies > 0);  // the fault has fired
  CHECK(num_fetched > 0);
  CHECK(num_kept > 0);
}

TEST_CASE("a site that freezes is left out and finds back to the others' weights") {
  for (uint64_t seed = first_seed(); seed < first_seed() + num_seeds(20); ++seed) {
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
  for (uint64_t seed = first_seed(); seed < first_seed() + num_seeds(20); ++seed) {
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

TEST_CASE(
    "after a power cut that takes a disk that site joins, and no sample is lost or repeated") {
  int64_t num_lost_disks = 0;
  for (uint64_t seed = first_seed(); seed < first_seed() + num_seeds(20); ++seed) {
    CAPTURE(seed);
    SimulatedRun run(run_with_power_cut(seed));
    REQUIRE(run.run() == "");
    num_lost_disks += run.num_lost_disks();
  }
  CHECK(num_lost_disks > 0);  // the fault has fired
}

TEST_CASE("a run replays exactly from its seed, whatever failed in it") {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    CAPTURE(seed);
    SimulatedRun once(any_run(seed)), again(any_run(seed));
    REQUIRE(once.run() == again.run());
    CHECK(once.trace() == again.trace());
    CHECK(once.virtual_s() == again.virtual_s());
    CHECK(once.last_hashes() == again.last_hashes());
  }
}

TEST_CASE("whatever fails in whatever order, nothing is committed twice, lost or unaccounted for") {
  const double begin_s = steady_now_s();
  double virtual_s = 0;
  int64_t num_restarts = 0, num_terms = 0, num_refused = 0, num_lost_commits = 0, num_shares = 0;
  int64_t num_power_cuts = 0, num_late_writes = 0, num_left_out = 0;
  const uint64_t first = first_seed();
  for (uint64_t seed = first; seed < first + num_seeds(100); ++seed) {
    CAPTURE(seed);
    SimulatedRun run(any_run(seed));
    REQUIRE(run.run() == "");
    virtual_s += run.virtual_s();
    num_restarts += run.num_restarts();
    num_terms += run.num_terms() - 1;
    num_refused += run.num_refused();
    num_lost_commits += run.truth().num_lost_commits();
    num_power_cuts += run.num_power_cuts();
    num_late_writes += run.store().num_refused();
    num_shares += run.num_share_changes();
    num_left_out += run.num_left_out();
  }
  const double speed = virtual_s / (steady_now_s() - begin_s);
  MESSAGE("restarts of sites " << num_restarts << ", of coordinators " << num_terms
                               << ", refused messages " << num_refused << ", commits taken back "
                               << num_lost_commits << ", new shares " << num_shares
                               << ", steps left out " << num_left_out << ", power cuts "
                               << num_power_cuts << ", writes of deposed coordinators refused "
                               << num_late_writes << ", times real time " << speed);
  CHECK(num_restarts > 0);  // the faults have fired
  CHECK(num_terms > 0);
  CHECK(num_refused > 0);
  CHECK(num_power_cuts + num_late_writes > 0);
  CHECK(num_shares > 0);
  CHECK(num_left_out > 0);
}

TEST_CASE("seeds that once broke a run stay mended") {
  // 9698: a greeting after a stop was kept as if that start had been taken in. 5552, 19999: all
  // sites had died, and who took over went on.
  for (const uint64_t seed : {uint64_t{5552}, uint64_t{9698}, uint64_t{19999}}) {
    CAPTURE(seed);
    SimulatedRun run(any_run(seed));
    CHECK(run.run() == "");
  }
  // All sites died before there was a checkpoint: who took over begins once more.
  CHECK(SimulatedRun(run_with_power_cut(3009)).run() == "");
  // So did they before the first commit, when the run was to stop already: there is nothing to
  // save.
  CHECK(SimulatedRun(run_with_power_cut(4612)).run() == "");
  // A crash that struck before the start took the last holder of a commit: of the simulation.
  CHECK(SimulatedRun(run_with_power_cut(19994)).run() == "");
}

TEST_CASE("a joiner that holds what was taken back gives nothing that it learned from that") {
  constexpr uint64_t kSeed = 2566;  // too rare to be met by looking for it
  CHECK(SimulatedRun(joining_run(kSeed)).run() == "");
  const PlantedBug blind{.name = "it is not seen that a site holds what was taken back",
                         .plant = [](FaultyCode& code) {
                           code.coordinator_hears = [](const std::string&, Message& message) {
                             if (auto* status = std::get_if<SiteStatus>(&message))
                               status->applied_epochs.clear();
                             return true;
                           };
                         }};
  SimulatedRunOptions options = joining_run(kSeed);
  options.bug = &blind;
  CHECK(SimulatedRun(options).run() != "");
}

}  // namespace
}  // namespace pelago::sites
