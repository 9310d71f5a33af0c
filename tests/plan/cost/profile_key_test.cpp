// What was measured of a device string at one site is not taken for another site's.
#include "plan/cost/device/profile_key.h"

#include "plan/cost/plan_costs.h"
#include "plan/fixtures.h"

namespace pelago::plan {
namespace {

constexpr const char* kTwins = R"(
[emulation]
slowdown = 1000
[[site]]
name = "east"
[[site.device]]
device = "emulated:a100"
count = 2
[[site]]
name = "west"
[[site.device]]
device = "emulated:a100"
count = 2
[[link]]
between = ["east", "west"]
bandwidth_mbit_s = 10000
)";
constexpr const char* kA100 = "emulated:nvidia-a100-80g-sxm";

Probe probe_of(const JobConfig& job,
               const FleetConfig& fleet,
               const std::map<std::string, double>& sequence_s) {
  Probe probe;
  probe.job_hash = probe_hash(job, fleet);
  for (const auto& [name, seconds] : sequence_s) {
    probe.devices[name] = profile_of({.sequence_s = seconds});
    probe.devices[name].device = kA100;
  }
  return probe;
}

JobConfig two_site_job() {
  JobConfig job = job_of_batch(64);
  job.sites.across = "rounds";
  return job;
}

double step_of_site(const Plan& plan, const JobConfig& job, size_t site_idx) {
  return simulate_site(run_of_plan(plan, job, site_idx)).step_s /
         static_cast<double>(plan.sites[site_idx].batch_sequences);
}

TEST_CASE(
    "two sites with one device string are planned, replayed and replanned by their own pace") {
  const JobConfig job = two_site_job();
  const FleetConfig fleet = fleet_from(kTwins);
  const Probe probe = probe_of(
      job, fleet, {{std::string("east/") + kA100, 0.1}, {std::string("west/") + kA100, 0.3}});
  const Plan plan = make_plan(job, fleet, catalogue(), &probe, 64);
  CHECK(static_cast<double>(plan.sites[0].batch_sequences) ==
        doctest::Approx(3 * static_cast<double>(plan.sites[1].batch_sequences)).epsilon(0.1));
  CHECK(plan.profiles.size() == 2);
  // As a file has it, and by whoever has but the plan.
  const Plan read = plan_from_json(to_json(plan), "plan.json");
  CHECK(step_of_site(read, job, 1) ==
        doctest::Approx(3 * step_of_site(read, job, 0)).epsilon(0.01));
  for (const size_t site_idx : {0UL, 1UL}) {
    const std::vector<size_t> lost = {1};
    const Plan fewer = replan_site(read, job, site_idx, lost, {});
    CHECK(fewer.sites[site_idx].predicted_step_s ==
          doctest::Approx(2 * read.sites[site_idx].predicted_step_s).epsilon(0.1));
  }
}

TEST_CASE(
    "sites that are alike share one profile, and a probe by device strings still serves all") {
  const JobConfig job = two_site_job();
  const FleetConfig fleet = fleet_from(kTwins);
  const Probe probe = probe_of(job, fleet, {{kA100, 0.1}});
  const Plan plan = make_plan(job, fleet, catalogue(), &probe, 64);
  REQUIRE(plan.profiles.size() == 1);
  CHECK(plan.profiles.begin()->first == kA100);
  CHECK(step_of_site(plan, job, 1) == doctest::Approx(step_of_site(plan, job, 0)));
}

TEST_CASE("a site's own measurement counts before the one of all") {
  const JobConfig job = two_site_job();
  const FleetConfig fleet = fleet_from(kTwins);
  const Probe probe = probe_of(job, fleet, {{kA100, 0.1}, {std::string("west/") + kA100, 0.2}});
  const Plan plan = make_plan(job, fleet, catalogue(), &probe, 64);
  CHECK(plan.profiles.contains(kA100));
  CHECK(plan.profiles.contains(std::string("west/") + kA100));
  CHECK(step_of_site(plan, job, 1) ==
        doctest::Approx(2 * step_of_site(plan, job, 0)).epsilon(0.01));
}

TEST_CASE("each profile is found again, whatever differs between sites and nodes") {
  // Numbers stand for profiles: by site, node and name, as a fleet lists them.
  struct Added {
    std::string site, node, name;
    double what;
  };
  const std::vector<Added> all = {{"a", "x", "cuda:0", 1},
                                  {"a", "y", "cuda:0", 2},
                                  {"a", "y", "cuda:1", 2},
                                  {"b", "x", "cuda:0", 2},
                                  {"b", "y", "cuda:0", 1},
                                  {"b", "y", "cuda:1", 3},
                                  {"c", "", "cuda:0", 1},
                                  {"c", "z", "cuda:1", 2}};
  Profiles profiles;
  ProfileBook book(profiles);
  for (const Added& one : all) {
    book.add(one.site, one.node, one.name, profile_of({.sequence_s = one.what}));
  }
  for (const Added& one : all) {
    INFO(one.site << " " << one.node << " " << one.name);
    const DeviceProfile* found = find_profile(profiles, one.site, one.node, one.name);
    REQUIRE(found != nullptr);
    CHECK(*found == profile_of({.sequence_s = one.what}));
  }
  CHECK(find_profile(profiles, "a", "x", "cuda:2") == nullptr);
  CHECK(profiles.size() == 6);
}

}  // namespace
}  // namespace pelago::plan
