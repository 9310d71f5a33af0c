// What a plan costs, for whoever plays or compares it.
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

TEST_CASE("a joint plan's costs hold its lines, and play to the step without the tied embedding") {
  JobConfig job = job_of_batch(64);
  job.model = model::preset("350m");
  job.model.tie_word_embeddings = false;
  job.sites.across = "pipeline";
  const Plan plan = make_plan(job, fleet_from(kUnevenLine), catalogue(), nullptr, 2);
  const SiteRun run = run_of_plan(plan, job, 0);
  CHECK(simulate_site(run).step_s == doctest::Approx(plan.sites[0].predicted_step_s).epsilon(1e-9));
  bool has_line = false;
  for (const StageCosts& stage : run.pipelines[0].stages) {
    has_line = has_line || stage.line.sequence_s > 0;
  }
  CHECK(has_line);
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
