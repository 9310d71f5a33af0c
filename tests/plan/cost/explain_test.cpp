// What is told beside a plan: bound, interval, what would help; and models with experts.
#include "plan/planner/explain/explain.h"

#include <rapidcheck.h>

#include <algorithm>

#include "plan/cost/memory.h"
#include "plan/fixtures.h"

namespace pelago::plan {
namespace {

FleetConfig fleet_of_chip(const std::string& chip, int count) {
  return fleet_from(fmt::format(
      "[[site]]\nname = 'a'\n[[site.device]]\ndevice = 'cuda:0'\nchip = '{}'\ncount = {}\n",
      chip,
      count));
}

TEST_CASE("no plan is faster than its bound") {
  CHECK(rc::check([] {
    JobConfig job = small_job();
    job.train.batch_sequences = *rc::gen::inRange<int64_t>(4, 100);
    const auto profile = [] {
      return profile_of({.sequence_s = *rc::gen::inRange(1, 100) / 1e3,
                         .step_s = *rc::gen::inRange(0, 100) / 1e3,
                         .microbatch_s = *rc::gen::inRange(0, 50) / 1e3});
    };
    const ProbedFleet probed = probed_fleet(job, {profile(), profile(), profile()});
    const Plan plan = make_plan(job, probed.fleet, catalogue(), &probed.probe, 2);
    RC_ASSERT(plan.predicted_tokens_s > 0);
    RC_ASSERT(plan.predicted_tokens_s <= plan.bound_tokens_s * (1 + 1e-9));
  }));
}

TEST_CASE("many chips for few sequences are bound by one sequence's way through the model") {
  JobConfig job = job_of_batch(4);
  job.train.pipeline = "auto";
  job.model = model::preset("350m");
  const Plan few = make_plan(job, fleet_of_chip("a100", 4), catalogue(), nullptr, 2);
  const Plan many = make_plan(job, fleet_of_chip("a100", 64), catalogue(), nullptr, 2);
  CHECK(many.bound_tokens_s < 8 * few.bound_tokens_s);
  CHECK(many.predicted_tokens_s <= many.bound_tokens_s);
}

TEST_CASE("a chip whose figures differ makes the answer an interval, a measured one does not") {
  const JobConfig job = job_of_batch(40);
  const Plan press = make_plan(job, fleet_of_chip("910b", 2), catalogue(), nullptr, 2);
  CHECK(press.predicted_tokens_s_lo < 0.9 * press.predicted_tokens_s);
  CHECK(press.predicted_tokens_s_hi > 1.1 * press.predicted_tokens_s);
  contains(to_table(press), "interval");
  const ProbedFleet probed = probed_fleet(job, {profile_of({})});
  const Plan measured = make_plan(job, probed.fleet, catalogue(), &probed.probe, 2);
  CHECK(measured.predicted_tokens_s_hi == 0);
}

TEST_CASE("a plan says what its chips draw, and what they cost where the fleet tells") {
  const JobConfig job = job_of_batch(40);
  FleetConfig fleet = fleet_of_chip("h20", 2);
  CHECK(make_plan(job, fleet, catalogue(), nullptr, 2).predicted_price_hour == 0);
  for (FleetDevice& device : fleet.sites[0].devices) device.price_hour = 1.5;
  const Plan plan = make_plan(job, fleet, catalogue(), nullptr, 2);
  CHECK(plan.predicted_price_hour == 3);
  CHECK(plan.predicted_power_w == doctest::Approx(2 * catalogue().find("h20").power_w));
  contains(to_table(plan), "a million tokens");
}

TEST_CASE("a line that sites wait for is what a change of it is worth most") {
  JobConfig job = job_of_batch(16);
  job.sites.across = "rounds";
  FleetConfig fleet = fleet_of_chip("h20", 1);
  fleet.sites.push_back(fleet.sites[0]);
  fleet.sites[1].name = "b";
  fleet.links.push_back({.from = "a", .to = "b", .bandwidth_mbit_s = 1, .rtt_ms = 5});
  const Plan plan = make_plan(job, fleet, catalogue(), nullptr, 2);
  const Explanation explanation = explain_plan(plan, job, fleet, catalogue(), nullptr, 2);
  REQUIRE(!explanation.changes.empty());
  CHECK(explanation.changes.front().gain_ratio > 0.5);
  CHECK(explanation.sites.front().line > 0.5);
  contains(to_text(explanation), "2x the line a - b");
  contains(to_json(explanation), "\"gain_ratio\"");
}

TEST_CASE("a token of a mixture goes through some experts, its optimizer through all of them") {
  JobConfig dense = small_job();
  JobConfig mixed = dense;
  mixed.experts = {.num_experts = 16,
                   .num_experts_per_tok = 1,
                   .moe_intermediate_size = dense.model.intermediate_size};
  CHECK(num_parameters(mixed) > 8 * dense.model.num_hidden_layers * dense.model.hidden_size *
                                    dense.model.intermediate_size);
  const FleetConfig fleet = fleet_of_chip("h20", 1);
  const Plan plain = make_plan(dense, fleet, catalogue(), nullptr, 2);
  const Plan experts = make_plan(mixed, fleet, catalogue(), nullptr, 2);
  const MemoryPlan& few = plain.sites[0].devices[0].predicted_memory;
  const MemoryPlan& many = experts.sites[0].devices[0].predicted_memory;
  CHECK(many.optimizer > 3 * few.optimizer);
  CHECK(many.activations < 2 * few.activations);
  CHECK(experts.predicted_tokens_s < plain.predicted_tokens_s);
}

TEST_CASE("experts that do not add up are refused by field") {
  const std::string job = "[model]\npreset = '2m'\nnum_experts = 8\n[data]\ndir = 'corpus'\n";
  contains(refusal([&] { job_from(job); }), "num_experts_per_tok = 0 must be between 1 and");
  contains(refusal([&] { job_from(job, {"model.num_experts_per_tok=2"}); }),
           "moe_intermediate_size = 0 must be 1 or more");
}

}  // namespace
}  // namespace pelago::plan
