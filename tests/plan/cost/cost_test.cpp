// What a plan costs, for whoever plays or compares it.
#include "plan/cost/parts.h"
#include "plan/cost/plan_costs.h"
#include "plan/fixtures.h"

namespace pelago::plan {
namespace {

constexpr const char* kUnevenLine = R"(
[[site]]
name = "a"
[[site.device]]
device = "cuda:0"
chip = "a100"
count = 4
[[site]]
name = "b"
[[site.device]]
device = "npu:0"
chip = "910b"
count = 4
[[link]]
between = ["a", "b"]
bandwidth_mbit_s = 1000
rtt_ms = 20
)";

TEST_CASE("a plan's own costs play to the step that the plan predicts") {
  JobConfig job = job_of_batch(64);
  job.model = model::preset("350m");
  const Plan plan = make_plan(job, fleet_from(kUnevenLine), catalogue(), nullptr, 2);
  for (size_t i = 0; i < plan.sites.size(); ++i) {
    const double step_s = simulate_site(run_of_plan(plan, job, i)).step_s;
    CHECK(step_s == doctest::Approx(plan.sites[i].predicted_step_s).epsilon(1e-9));
    const auto memory = memory_of_plan(plan, job, i);
    REQUIRE(memory.size() == plan.sites[i].pipelines.size());
    const auto rank = static_cast<size_t>(plan.sites[i].pipelines[0].stages[0].ranks[0]);
    CHECK(memory[0][0].total() ==
          doctest::Approx(plan.sites[i].devices[rank].predicted_memory.total()));
  }
}

TEST_CASE("a joint plan's costs hold its lines, and play to the step, a tied embedding included") {
  JobConfig job = job_of_batch(64);
  job.model = model::preset("350m");
  job.sites.across = "pipeline";
  SUBCASE("tied") { job.model.tie_word_embeddings = true; }
  SUBCASE("not tied") { job.model.tie_word_embeddings = false; }
  const Plan plan = make_plan(job, fleet_from(kUnevenLine), catalogue(), nullptr, 2);
  const SiteRun run = run_of_plan(plan, job, 0);
  CHECK(simulate_site(run).step_s == doctest::Approx(plan.sites[0].predicted_step_s).epsilon(1e-9));
  bool has_line = false;
  for (const StageCosts& stage : run.pipelines[0].stages) {
    has_line = has_line || stage.line.sequence_s > 0;
  }
  CHECK(has_line);
}

TEST_CASE("the parts of every rank add up to the step of the plan, lines included") {
  JobConfig job = job_of_batch(64);
  job.model = model::preset("350m");
  SUBCASE("each site by itself") { job.sites.across = "rounds"; }
  SUBCASE("sites in step") { job.sites.across = "pipeline"; }
  SUBCASE("blocks over two ranks") {
    job.sites.across = "rounds";
    job.train.tensor_parallel = 2;
  }
  const Plan plan = make_plan(job, fleet_from(kUnevenLine), catalogue(), nullptr, 2);
  double slowest_s = 0;
  for (const SitePlan& site : plan.sites) slowest_s = std::max(slowest_s, site.predicted_step_s);
  const auto parts = parts_of_plan(plan, job);
  REQUIRE(parts.size() == 2);
  for (const auto& site : parts) {
    REQUIRE(site.size() == 4);
    for (const PartSeconds& rank : site) {
      CHECK(rank.sum_s() - rank.line_s <= doctest::Approx(slowest_s));
      CHECK(rank.sum_s() >= doctest::Approx(slowest_s));
      for (const NamedPart& part : all_parts()) {
        INFO(part.name);
        CHECK(rank.*part.seconds >= -1e-9 * slowest_s);
      }
      // What ranks of a stage wait for each other is not computing.
      CHECK((rank.bubble_s > 0) == (job.train.tensor_parallel == 2 || !plan.pipelines.empty()));
    }
  }
}

TEST_CASE("a stage pays what it does besides its blocks, each microbatch") {
  const JobConfig job = job_of_batch(64);
  Plan plan = make_plan(job, fleet_from(kUnevenLine), catalogue(), nullptr, 2);
  const PartSeconds before = parts_of_plan(plan, job)[0][0];
  for (auto& [name, profile] : plan.profiles) profile.stage_backward = {1, 0};
  const PartSeconds after = parts_of_plan(plan, job)[0][0];
  const auto num_microbatches = static_cast<double>(plan.sites[0].pipelines[0].num_microbatches());
  CHECK(after.backward_s - before.backward_s == doctest::Approx(num_microbatches));
  CHECK(after.forward_s == doctest::Approx(before.forward_s));
}

TEST_CASE("an exchange goes at the pace of the slower way, and what is lost is sent again") {
  FleetLink link{.from = "a", .to = "b", .bandwidth_mbit_s = 800, .rtt_ms = 20};
  CHECK(line_costs(link).slower_byte_s() == doctest::Approx(1e-8));
  link.back_mbit_s = 400;
  CHECK(line_costs(link).byte_s == doctest::Approx(1e-8));
  CHECK(line_costs(link).slower_byte_s() == doctest::Approx(2e-8));
  link.loss = 0.1;
  CHECK(line_costs(link).slower_byte_s() == doctest::Approx(2e-8 / 0.9));
  ExchangeCosts exchange;
  exchange.line_bytes = 1e8;
  CHECK(exchange.seconds(link) == doctest::Approx(2 / 0.9 + 0.03));
}

TEST_CASE("a line that loses most of what it carries is refused, and so is a way back of nothing") {
  contains(refusal([] { fleet_from(std::string(kUnevenLine) + "loss = 0.4\n"); }),
           "loss = 0.4 must be between 0 and 0.15");
  contains(refusal([] { fleet_from(std::string(kUnevenLine) + "back_mbit_s = 0\n"); }),
           "back_mbit_s = 0 must be greater than 0");
  const FleetConfig fleet =
      fleet_from(std::string(kUnevenLine) + "back_mbit_s = 100\nloss = 0.01\n");
  const JobConfig job = job_of_batch(40);
  const Plan plan = make_plan(job, fleet, catalogue(), nullptr, 2);
  CHECK(plan_from_json(to_json(plan), "plan.json").links[0].back_mbit_s == 100);
  CHECK(plan_from_json(to_json(plan), "plan.json").links[0].loss == 0.01);
}

}  // namespace
}  // namespace pelago::plan
