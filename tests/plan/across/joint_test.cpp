// Pipelines whose stages lie in several sites: when the planner takes one, how deep it makes it,
// and what it refuses of an edited one.
#include "plan/across/joint.h"

#include <algorithm>

#include "plan/fixtures.h"
#include "plan/pipeline_time.h"

namespace pelago::plan {
namespace {

constexpr const char* kFourChips = R"(
[emulation]
slowdown = 3000
[[site]]
name = "lingang"
[[site.device]]
device = "emulated:nvidia-a100-80g-sxm"
count = 2
[[site]]
name = "guizhou"
[[site.device]]
device = "emulated:huawei-910b2"
count = 2
[[link]]
between = ["lingang", "guizhou"]
bandwidth_mbit_s = 1000
rtt_ms = 20
)";

Plan plan_across(const std::string& across, const std::vector<std::string>& overrides = {}) {
  JobConfig job = job_of_batch(40);
  job.sites.across = across;
  return make_plan(job, fleet_from(kFourChips, overrides), catalogue(), nullptr, 2);
}

TEST_CASE("a pipeline over two sites crosses the line once and has every device in one stage") {
  const Plan plan = plan_across("pipeline");
  REQUIRE(is_joint(plan));
  std::vector<int> places(4, 0);
  int64_t sequences = 0;
  for (const PipelinePlan& pipeline : plan.pipelines) {
    sequences += pipeline.sequences;
    size_t last_site = 0;
    for (const StagePlan& stage : pipeline.stages) {
      for (const int rank : stage.ranks) ++places[static_cast<size_t>(rank)];
      const size_t site = site_of_joint_rank(plan, stage.ranks.front());
      CHECK(site >= last_site);
      last_site = site;
    }
    CHECK(last_site == 1);
  }
  CHECK(places == std::vector<int>(4, 1));
  CHECK(sequences == plan.batch_sequences);
  CHECK(plan.exchange.fragments == 0);
  CHECK(to_json(plan_from_json(to_json(plan), "plan.json")) == to_json(plan));
}

TEST_CASE("the longer the line, the more microbatches are under way in front of it") {
  const auto depth = [](const std::string& rtt) {
    JobConfig job = job_of_batch(64);
    job.sites.across = "pipeline";
    job.train.stages = 4;
    job.train.microbatch_sequences = 1;
    FleetConfig fleet = fleet_from(kFourChips);
    fleet.emulation_slowdown = 100;
    fleet.links[0].rtt_ms = std::stod(rtt);
    const Plan plan = make_plan(job, fleet, catalogue(), nullptr, 1e9);
    return in_flight(plan.pipelines[0], 1) - in_flight(plan.pipelines[0], 2);
  };
  CHECK(depth("0.01") >= 1);
  CHECK(depth("20") >= depth("0.01"));
  CHECK(depth("400") > depth("20"));
}

TEST_CASE("sites that hold the model train by rounds unless asked, those that do not in step") {
  CHECK_FALSE(is_joint(plan_across("auto")));
  CHECK_FALSE(is_joint(plan_across("rounds")));
  bool was_too_large = false;
  for (double memory_gib = 0.2; memory_gib > 0.005 && !was_too_large; memory_gib *= 0.8) {
    const std::vector<std::string> memory{fmt::format("emulation.memory_gib={:.4f}", memory_gib)};
    const std::string why = refusal([&] { plan_across("rounds", memory); });
    if (why.empty()) continue;
    was_too_large = true;
    CHECK(is_joint(plan_across("auto", memory)));
  }
  CHECK(was_too_large);
}

TEST_CASE("a line too thin for activations is warned of, and the table shows the stages") {
  JobConfig job = job_of_batch(40);
  job.sites.across = "pipeline";
  FleetConfig fleet = fleet_from(kFourChips);
  fleet.links[0].bandwidth_mbit_s = 0.1;
  const Plan plan = make_plan(job, fleet, catalogue(), nullptr, 2);
  CHECK(std::any_of(plan.warnings.begin(), plan.warnings.end(), [](const std::string& warning) {
    return warning.find("goes at ") != std::string::npos &&
           warning.find("sites.across = \"rounds\" would do") != std::string::npos;
  }));
  CHECK(plan.predicted_line_share > 0.5);
  const std::string table = to_table(plan_across("pipeline"));
  contains(table, "across     stages in several sites, in step; activations in 16 bits");
  contains(table, "of 1000 Mbit/s each way");
}

TEST_CASE("settings of exchanges are named as without meaning where there are none") {
  JobConfig job = job_of_batch(40);
  job.sites.across = "pipeline";
  job.sites.inner_steps = 48;
  job.sites.delta_bits = 8;
  const Plan plan = make_plan(job, fleet_from(kFourChips), catalogue(), nullptr, 2);
  CHECK(std::any_of(plan.warnings.begin(), plan.warnings.end(), [](const std::string& warning) {
    return warning.find("here: sites.inner_steps, sites.delta_bits") != std::string::npos;
  }));
}

TEST_CASE("a pipeline over sites that would wait for itself for ever is refused") {
  Plan plan = plan_across("pipeline", {});
  Plan shallow = plan;
  std::vector<StagePlan>& stages = shallow.pipelines[0].stages;
  stages.front().in_flight = 1;
  stages.back().in_flight = 2;
  contains(refusal([&] { plan_from_json(to_json(shallow), "p"); }), "must be at least the next");
  Plan greedy = plan;
  greedy.sites[1].batch_sequences = 1;
  contains(refusal([&] { plan_from_json(to_json(greedy), "p"); }), "of its own");
  Plan alone = plan;
  alone.sites.resize(1);
  alone.links.clear();
  contains(refusal([&] { plan_from_json(to_json(alone), "p"); }), "need several sites");
}

TEST_CASE("activations of other widths than 8, 16 and 32 bits are refused") {
  contains(refusal([] { job_from("[data]\ndir = 'c'\n[sites]\nactivation_bits = 4\n"); }),
           "must be 8, 16 or 32");
}

TEST_CASE("a microbatch more under way hides a line that delays every message") {
  PipelineRun run;
  run.sequences.assign(20, 1);
  run.stages.resize(2);
  for (StageCosts& stage : run.stages) {
    stage.forward = {0.1, 0};
    stage.backward = {0.2, 0};
  }
  const double near_s = simulate_pipeline(run).end_s;
  run.stages[0].message = {0.15, 0};
  const double shallow_s = simulate_pipeline(run).end_s;
  run.stages[0].in_flight = 4;
  const double deep_s = simulate_pipeline(run).end_s;
  CHECK(shallow_s > 1.2 * near_s);
  CHECK(deep_s == doctest::Approx(near_s + 2 * 0.15).epsilon(0.01));
}

}  // namespace
}  // namespace pelago::plan
