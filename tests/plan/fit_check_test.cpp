#include "plan/fixtures.h"
#include "plan/planner/aim/part_of_fleet.h"

namespace pelago::plan {
namespace {

constexpr const char* kTwo = R"(
[emulation]
slowdown = 1000
[[site]]
name = "here"
[[site.device]]
device = "emulated:nvidia-a100-80g-sxm"
node = "a"
[[site.device]]
device = "emulated:nvidia-h20"
node = "b"
)";

std::string edited(std::string toml, const std::string& from, const std::string& to) {
  return toml.replace(toml.find(from), from.size(), to);
}

/// The refusal of the job's own plan after a change to plan, job or fleet.
std::string refusal_after(auto&& change, const std::string& fleet_toml = kTwo) {
  JobConfig job = job_of_batch(32);
  Plan plan = make_plan(job, fleet_from(kTwo), catalogue(), nullptr, 2);
  change(plan, job);
  return refusal(
      [&] { check_plan_fits(plan, job, fleet_from(fleet_toml), catalogue(), "plan.json"); });
}

void leave_alone(Plan&, JobConfig&) {}

TEST_CASE("a plan fits the job and the fleet that it was made for") {
  CHECK(refusal_after(leave_alone).empty());
}

TEST_CASE("a plan of another model is refused by what differs") {
  contains(refusal_after([](Plan&, JobConfig& job) { job.model.num_hidden_layers += 1; }),
           "plan.json: num_blocks = ");
  contains(refusal_after([](Plan&, JobConfig& job) { job.model.vocab_size += 64; }),
           "plan.json: num_parameters = ");
  contains(refusal_after([](Plan&, JobConfig& job) { job.data.sequence_length = 64; }),
           "plan.json: sequence_length = 128, but data.sequence_length = 64");
  contains(refusal_after([](Plan&, JobConfig& job) { job.train.optimizer = "muon"; }),
           "plan.json: optimizer = adamw, but train.optimizer = muon");
}

TEST_CASE("a device of the plan that the fleet lacks is refused by its name and place") {
  contains(refusal_after(leave_alone, edited(kTwo, "nvidia-h20", "huawei-910b2")),
           "plan.json: sites[0]: devices[1] = emulated:nvidia-h20: the fleet has none of them in "
           "this site");
  contains(
      refusal_after(
          leave_alone,
          edited(kTwo, "[[site.device]]\ndevice = \"emulated:nvidia-h20\"\nnode = \"b\"\n", "")),
      "devices[1] = emulated:nvidia-h20: the fleet has none of them in this site");
  contains(refusal_after([](Plan& plan, JobConfig&) {
             SitePlan& site = plan.sites[0];
             site.devices.push_back(site.devices[1]);
           }),
           "devices[2] = emulated:nvidia-h20: the plan has 2 of them in node \"b\", the fleet has "
           "only 1");
  contains(refusal_after([](Plan& plan, JobConfig&) {
             std::swap(plan.sites[0].devices[0], plan.sites[0].devices[1]);
           }),
           "stands in another order in the fleet");
  contains(refusal_after(leave_alone, edited(kTwo, "\"here\"", "\"there\"")),
           "sites[0]: name = \"here\": the fleet has no such site; it has there");
}

TEST_CASE("a device that moved to another node is refused") {
  contains(refusal_after(leave_alone, edited(kTwo, "\"b\"", "\"c\"")),
           "devices[1]: node = \"b\", but the fleet has emulated:nvidia-h20 in node \"c\"");
}

TEST_CASE("devices and sites that a plan does not name stay free, and are told") {
  const std::string larger = edited(kTwo, "[[site]]", R"([[site]]
name = "other"
[[site.device]]
device = "emulated:nvidia-h20"
count = 2
[[link]]
between = ["here", "other"]
[[site]]
)") + "[[site.device]]\ndevice = 'emulated:nvidia-a100-80g-sxm'\nnode = 'a'\ncores = [0]\n";
  CHECK(refusal_after(leave_alone, larger).empty());
  const FleetConfig fleet = fleet_from(larger);
  const Plan plan = make_plan(job_of_batch(32), fleet_from(kTwo), catalogue(), nullptr, 2);
  const FleetConfig part = part_of_fleet(plan, fleet, catalogue(), "plan.json");
  REQUIRE(part.sites.size() == 1);
  CHECK(part.links.empty());
  CHECK(part.sites[0].name == "here");
  REQUIRE(part.sites[0].devices.size() == 2);
  CHECK(part.sites[0].devices[0].cores == plan.sites[0].devices[0].cores);
  CHECK(left_free(fleet, part, catalogue()) ==
        "2 of 2 H20 96GB in site other, 1 of 2 A100 80GB SXM in site here");
  CHECK(left_free(fleet, fleet, catalogue()).empty());
}

TEST_CASE("of devices that are alike a plan uses those whose processors it names") {
  const std::string twice = edited(kTwo, "node = \"a\"\n", R"(node = "a"
cores = [0]
[[site.device]]
device = "emulated:nvidia-a100-80g-sxm"
node = "a"
cores = [1]
)");
  Plan plan = make_plan(job_of_batch(32), fleet_from(twice), catalogue(), nullptr, 2);
  plan.sites[0].devices.erase(plan.sites[0].devices.begin());
  const FleetConfig part = part_of_fleet(plan, fleet_from(twice), catalogue(), "plan.json");
  REQUIRE(part.sites[0].devices.size() == 2);
  CHECK(part.sites[0].devices[0].cores == std::vector<int>{1});
}

TEST_CASE("another slowdown is refused, for the predictions would be wrong") {
  contains(refusal_after(leave_alone, edited(kTwo, "1000", "2000")),
           "emulation_slowdown = 1000, but emulation.slowdown = 2000");
}

TEST_CASE("a dtype that a chip of the plan lacks is refused with the remedy") {
  JobConfig job = job_of_batch(32);
  const FleetConfig fleet = fleet_from(edited(kTwo, "nvidia-h20", "huawei-910a"));
  const Plan plan = make_plan(job, fleet, catalogue(), nullptr, 2);
  job.train.dtype = "bf16";
  contains(refusal([&] { check_plan_fits(plan, job, fleet, catalogue(), "plan.json"); }),
           "emulated:huawei-910a has no bf16: set train.dtype = \"auto\"");
}

TEST_CASE("a stage that its chip cannot hold is refused with what it needs and three remedies") {
  const JobConfig job = job_of_batch(32);
  const Plan plan = make_plan(job, fleet_from(kTwo), catalogue(), nullptr, 2);
  const FleetConfig small = fleet_from(kTwo, {"emulation.memory_gib=0.02"});
  const std::string message =
      refusal([&] { check_plan_fits(plan, job, small, catalogue(), "plan.json"); });
  contains(message, "plan.json: sites[0].pipelines[0].stages[0]: needs ");
  contains(message, "has 0.02: give it fewer blocks, a smaller microbatch, or recompute = true");
}

TEST_CASE("ranks that do not divide the model's heads are refused") {
  JobConfig job = job_of_batch(32);
  const std::string eight =
      "[emulation]\nslowdown=9\n[[site]]\nname='here'\n[[site.device]]\ndevice='emulated:a100'\n"
      "count=8\n";
  const FleetConfig fleet = fleet_from(eight);
  Plan plan = make_plan(job, fleet, catalogue(), nullptr, 2);
  SitePlan& site = plan.sites[0];
  site.pipelines.resize(1);
  site.pipelines[0].sequences = site.batch_sequences;
  site.pipelines[0].stages[0].ranks = {0, 1, 2, 3, 4, 5, 6, 7};
  contains(refusal([&] { check_plan_fits(plan, job, fleet, catalogue(), "plan.json"); }),
           "stages[0]: 8 ranks do not divide the model's heads");
}

}  // namespace
}  // namespace pelago::plan
