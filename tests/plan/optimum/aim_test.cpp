// Which devices a plan uses when it is to spare energy or money, or must keep to a limit, against
// every part of the fleet that there is.
#include <fmt/format.h>

#include <random>

#include "plan/fixtures.h"
#include "plan/planner/aim/choose.h"
#include "plan/planner/explain/explain.h"

namespace pelago::plan {
namespace {

struct AimCase {
  JobConfig job;
  ProbedFleet probed;
};

/// Two to five devices of two paces, powers and prices.
AimCase random_case(std::mt19937_64& random, const std::string& objective) {
  const auto below = [&](uint64_t count) { return random() % count; };
  AimCase one;
  one.job = job_of_batch(8);
  one.job.train.steps = 100;
  one.job.aim.objective = objective;
  const PaceOptions paces[] = {{.sequence_s = 0.1, .step_s = 0.02 * static_cast<double>(below(20))},
                               {.sequence_s = 0.1 * static_cast<double>(1 + below(9))}};
  const double powers[] = {static_cast<double>(100 + below(300)),
                           static_cast<double>(100 + below(300))};
  const double prices[] = {1, 0.1 * static_cast<double>(1 + below(20))};
  std::vector<DeviceProfile> profiles;
  std::vector<size_t> kinds;
  const uint64_t count = 2 + below(4);
  for (uint64_t i = 0; i < count; ++i) {
    kinds.push_back(below(2));
    profiles.push_back(profile_of(paces[kinds.back()]));
  }
  one.probed = probed_fleet(one.job, profiles);
  for (size_t i = 0; i < kinds.size(); ++i) {
    FleetDevice& device = one.probed.fleet.sites[0].devices[i];
    device.profile = kinds[i] == 0 ? "quick" : "slow";
    device.power_w = powers[kinds[i]];
    device.price_hour = prices[kinds[i]];
  }
  return one;
}

double objective_of(const Plan& plan, const JobConfig& job) {
  const double tokens_s = tokens_s_with_lines(plan);
  if (job.aim.objective == "tokens/joule") return tokens_s / plan.predicted_power_w;
  if (job.aim.objective == "tokens/price") return tokens_s / plan.predicted_price_hour;
  return tokens_s;
}

/// Over every part of the fleet that keeps to the watts and the hours; 0: none does.
double best_of_all(const AimCase& one) {
  const std::vector<FleetDevice>& devices = one.probed.fleet.sites[0].devices;
  double best = 0;
  for (size_t mask = 1; mask < size_t{1} << devices.size(); ++mask) {
    FleetConfig part = one.probed.fleet;
    part.sites[0].devices.clear();
    for (size_t i = 0; i < devices.size(); ++i) {
      if ((mask >> i & 1) != 0) part.sites[0].devices.push_back(devices[i]);
    }
    const Plan plan = make_plan(one.job, part, catalogue(), &one.probed.probe, 2);
    const AimConfig& aim = one.job.aim;
    if (aim.max_watts > 0 && plan.predicted_power_w > aim.max_watts) continue;
    const double hours = 100.0 * static_cast<double>(plan.batch_sequences * plan.sequence_length) /
                         tokens_s_with_lines(plan) / 3600;
    if (aim.deadline_hours > 0 && hours > aim.deadline_hours) continue;
    best = std::max(best, objective_of(plan, one.job));
  }
  return best;
}

ChosenFleet choose(const AimCase& one) {
  return choose_devices(one.job, one.probed.fleet, catalogue(), &one.probed.probe, 2);
}

TEST_CASE("no part of a small fleet serves an objective better than the one chosen") {
  for (const std::string objective : {"tokens/s", "tokens/joule", "tokens/price"}) {
    for (uint64_t seed = 1; seed <= 12; ++seed) {
      std::mt19937_64 random(seed);
      AimCase one = random_case(random, objective);
      one.job.aim.max_watts = seed % 3 == 0 ? 500 : objective == "tokens/s" ? 700 : 0;
      one.job.aim.deadline_hours = seed % 3 == 1 ? 0.02 : 0;
      INFO(objective << " seed " << seed);
      const double best = best_of_all(one);
      if (best == 0) {
        CHECK(contains(refusal([&] { choose(one); }), "no p"));
        continue;
      }
      const ChosenFleet chosen = choose(one);
      CHECK(objective_of(chosen.plan, one.job) >= best * (1 - 1e-9));
      CHECK(to_json(chosen.plan) == to_json(choose(one).plan));
    }
  }
}

/// So many quick devices and slow ones, in nodes of eight.
AimCase two_kinds(const std::string& objective, int64_t num_quick, int64_t num_slow) {
  AimCase one;
  one.job = job_of_batch(2 * (num_quick + num_slow));
  one.job.train.steps = 100;
  one.job.aim.objective = objective;
  std::vector<DeviceProfile> profiles(static_cast<size_t>(num_quick),
                                      profile_of({.sequence_s = 0.1, .step_s = 0.05}));
  profiles.resize(static_cast<size_t>(num_quick + num_slow), profile_of({.sequence_s = 0.35}));
  one.probed = probed_fleet(one.job, profiles);
  for (size_t i = 0; i < profiles.size(); ++i) {
    FleetDevice& device = one.probed.fleet.sites[0].devices[i];
    const bool is_quick = i < static_cast<size_t>(num_quick);
    device.profile = is_quick ? "quick" : "slow";
    device.power_w = is_quick ? 400 : 150;
    device.price_hour = is_quick ? 2 : 0.5;
    device.node = fmt::format("node{}", i / 8);
  }
  return one;
}

/// The best of all numbers of both kinds; 0: none keeps to the watts and the hours.
double best_of_numbers(const AimCase& one, size_t num_quick) {
  const std::vector<FleetDevice>& devices = one.probed.fleet.sites[0].devices;
  double best = 0;
  for (size_t quick = 0; quick <= num_quick; ++quick) {
    for (size_t slow = quick == 0 ? 1 : 0; slow <= devices.size() - num_quick; ++slow) {
      AimCase part = one;
      std::vector<FleetDevice>& used = part.probed.fleet.sites[0].devices;
      used.assign(devices.begin(), devices.begin() + static_cast<std::ptrdiff_t>(quick));
      const auto first_slow = devices.begin() + static_cast<std::ptrdiff_t>(num_quick);
      used.insert(used.end(), first_slow, first_slow + static_cast<std::ptrdiff_t>(slow));
      const Plan plan = make_plan(part.job, part.probed.fleet, catalogue(), &part.probed.probe, 2);
      if (one.job.aim.max_watts > 0 && plan.predicted_power_w > one.job.aim.max_watts) continue;
      best = std::max(best, objective_of(plan, part.job));
    }
  }
  return best;
}

TEST_CASE("of a fleet too large to plan all its parts a few plans find one that is nearly best") {
  for (const std::string objective : {"tokens/s", "tokens/joule", "tokens/price"}) {
    for (const double max_watts : {0, 6000}) {
      AimCase one = two_kinds(objective, 18, 12);
      one.job.aim.max_watts = max_watts;
      INFO(objective << " " << max_watts << " W");
      const ChosenFleet chosen = choose(one);
      CHECK(objective_of(chosen.plan, one.job) >= 0.98 * best_of_numbers(one, 18));
      CHECK(chosen.num_plans <= 60);
    }
  }
}

TEST_CASE("a large fleet takes a bounded number of plans, whatever it is to spare") {
  for (const std::string objective : {"tokens/joule", "tokens/price"}) {
    const AimCase one = two_kinds(objective, 64, 64);
    const ChosenFleet chosen = choose(one);
    CHECK(chosen.num_plans <= 32);
    for (const size_t first : {0UL, 64UL}) {
      AimCase alone = one;
      std::vector<FleetDevice>& devices = alone.probed.fleet.sites[0].devices;
      devices.erase(devices.begin() + static_cast<std::ptrdiff_t>(64 - first),
                    devices.end() - static_cast<std::ptrdiff_t>(first));
      const Plan plan = make_plan(one.job, alone.probed.fleet, catalogue(), &one.probed.probe, 2);
      CHECK(objective_of(chosen.plan, one.job) >= objective_of(plan, one.job));
    }
  }
}

TEST_CASE("chips to keep free stay free, whichever site they are in") {
  const FleetConfig fleet = fleet_from(R"(
[[site]]
name = "a"
[[site.device]]
device = "cuda:0"
chip = "a100"
count = 4
[[site]]
name = "b"
[[site.device]]
device = "cuda:4"
chip = "h20"
count = 2
[[link]]
between = ["a", "b"]
bandwidth_mbit_s = 1e6
)");
  JobConfig job = job_of_batch(64);
  job.model = model::preset("350m");
  job.aim.keep_free = {"a100=3"};
  const ChosenFleet chosen = choose_devices(job, fleet, catalogue(), nullptr, 2);
  CHECK(chosen.fleet.sites[0].devices.size() == 1);
  CHECK(chosen.left_free == "3 of 4 A100 80GB SXM in site a");
  job.aim.keep_free = {"a100=4"};
  const ChosenFleet without = choose_devices(job, fleet, catalogue(), nullptr, 2);
  CHECK(without.plan.sites.size() == 1);
  CHECK(without.fleet.links.empty());
  job.aim.keep_free = {"a100=5"};
  CHECK(contains(refusal([&] { choose_devices(job, fleet, catalogue(), nullptr, 2); }),
                 "the fleet has 4 of them"));
}

TEST_CASE("what an objective needs and nobody told is asked for") {
  std::mt19937_64 random(1);
  AimCase one = random_case(random, "tokens/price");
  one.probed.fleet.sites[0].devices[0].price_hour = 0;
  CHECK(contains(refusal([&] { choose(one); }), "give price_hour of each in fleet.toml"));
  one.job.aim.objective = "tokens/joule";
  one.probed.fleet.sites[0].devices[0].power_w = 0;
  CHECK(contains(refusal([&] { choose(one); }), "give power_w of each in fleet.toml"));
  one.job.aim = {.deadline_hours = 1e-6};
  CHECK(contains(refusal([&] { choose(one); }), "no plan is done by then; the fastest"));
  CHECK(contains(refusal([] { job_from("[data]\ndir = 'c'\n", {"plan.deadline_hours=3"}); }),
                 "needs train.steps"));
}

}  // namespace
}  // namespace pelago::plan
