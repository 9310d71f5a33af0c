#include "plan/pipeline_time.h"

#include <rapidcheck.h>

#include <algorithm>
#include <numeric>

#include "plan/fixtures.h"
#include "plan/planner/search/pace.h"

namespace pelago::plan {
namespace {

/// Stages of one pace; forward takes one second a sequence, backward two.
PipelineRun even_run(size_t num_stages, int64_t num_microbatches) {
  PipelineRun run;
  run.stages.resize(num_stages);
  for (StageCosts& stage : run.stages) {
    stage.forward.sequence_s = 1;
    stage.backward.sequence_s = 2;
  }
  run.sequences.assign(static_cast<size_t>(num_microbatches), 1);
  return run;
}

LinearCost any_cost() { return {*rc::gen::inRange(0, 50) / 1e3, *rc::gen::inRange(1, 100) / 1e3}; }

PipelineRun any_run() {
  PipelineRun run;
  run.stages.resize(*rc::gen::inRange<size_t>(1, 7));
  for (StageCosts& stage : run.stages) {
    stage.forward = any_cost();
    stage.backward = any_cost();
    stage.copy = any_cost().times(0.1);
    stage.message = any_cost().times(0.1);
  }
  const int64_t share = *rc::gen::inRange<int64_t>(1, 40);
  run.sequences = cut_microbatches(share, *rc::gen::inRange<int64_t>(1, 6));
  return run;
}

double busiest_s(const PipelineTime& time) {
  double busiest = 0;
  for (const PipelineTime::Stage& stage : time.stages) busiest = std::max(busiest, stage.busy_s);
  return busiest;
}

TEST_CASE("the bubble of even stages is (S - 1) / (m + S - 1)") {
  for (const size_t num_stages : {1, 2, 3, 8}) {
    for (const int64_t num_microbatches : {1, 2, 5, 30}) {
      const PipelineTime time = simulate_pipeline(even_run(num_stages, num_microbatches));
      const auto s = static_cast<double>(num_stages);
      const auto m = static_cast<double>(num_microbatches);
      CHECK(time.bubble() == doctest::Approx((s - 1) / (m + s - 1)));
      CHECK(time.end_s == doctest::Approx(3 * (m + s - 1)));
    }
  }
}

TEST_CASE("stage s of S keeps at most S - s microbatches, and never more than there are") {
  const PipelineTime time = simulate_pipeline(even_run(4, 3));
  CHECK(time.stages[0].in_flight_max == 3);
  CHECK(time.stages[1].in_flight_max == 3);
  CHECK(time.stages[2].in_flight_max == 2);
  CHECK(time.stages[3].in_flight_max == 1);
}

TEST_CASE("a step is never shorter than its busiest stage, nor than one microbatch's way") {
  CHECK(rc::check([] {
    const PipelineRun run = any_run();
    const PipelineTime time = simulate_pipeline(run);
    double way_s = 0;
    const auto first = static_cast<double>(run.sequences.front());
    for (const StageCosts& stage : run.stages) {
      way_s += stage.forward.at(first) + stage.backward.at(first);
    }
    RC_ASSERT(time.end_s >= busiest_s(time) - 1e-9);
    RC_ASSERT(time.end_s >= way_s - 1e-9);
  }));
}

TEST_CASE("whatever takes longer never makes a step shorter") {
  CHECK(rc::check([] {
    PipelineRun run = any_run();
    const double before_s = simulate_pipeline(run).end_s;
    StageCosts& stage = run.stages[*rc::gen::inRange<size_t>(0, run.stages.size())];
    LinearCost* const costs[] = {&stage.forward, &stage.backward, &stage.copy, &stage.message};
    *costs[*rc::gen::inRange<size_t>(0, 4)] += any_cost();
    RC_ASSERT(simulate_pipeline(run).end_s >= before_s - 1e-9);
  }));
}

TEST_CASE("the closed form of a search is the simulation for even stages, and near it for others") {
  for (const size_t num_stages : {1, 2, 4}) {
    const PipelineRun run = even_run(num_stages, 12);
    const Pace pace = pace_of(run.stages, 1, 0);
    CHECK(pace.time_s(12, 1) == doctest::Approx(simulate_pipeline(run).end_s));
  }
  CHECK(rc::check([] {
    PipelineRun run = any_run();
    for (StageCosts& stage : run.stages) stage.copy = stage.message = {};
    const int64_t microbatch = run.sequences.front();
    const auto share = std::accumulate(run.sequences.begin(), run.sequences.end(), int64_t{0});
    const double closed_s = pace_of(run.stages, microbatch, 0).time_s(share, microbatch);
    const double played_s = simulate_pipeline(run).end_s;
    RC_ASSERT(closed_s >= 0.75 * played_s);
    RC_ASSERT(closed_s <= 1.3 * played_s);
  }));
}

TEST_CASE("a pipeline never takes less time for more sequences") {
  CHECK(rc::check([] {
    const PipelineRun run = any_run();
    const Pace pace = pace_of(run.stages, *rc::gen::inRange<int64_t>(1, 9), 0.01);
    double before_s = 0;
    for (int64_t share = 1; share < 60; ++share) {
      const double now_s = pace.time_s(share);
      RC_ASSERT(now_s >= before_s - 1e-12);
      before_s = now_s;
    }
  }));
}

TEST_CASE(
    "a message costs nothing where the stage behind has time to spare, else a way each period") {
  PipelineRun run = even_run(2, 20);
  run.stages[0].message.fixed_s = 0.4;
  CHECK(simulate_pipeline(run).end_s == doctest::Approx(63 + 20 * 0.4));
  run.stages[1].forward.sequence_s /= 4;
  run.stages[1].backward.sequence_s /= 4;
  CHECK(simulate_pipeline(run).end_s <= 60 + 3.0 / 4 + 2 * 0.4 + 1e-9);
}

SiteRun two_pipelines(double reduction_s, double ready_ratio) {
  SiteRun run;
  run.pipelines = {even_run(1, 4), even_run(1, 4)};
  run.reductions.push_back({.members = {{0, 0, ready_ratio}, {1, 0, ready_ratio}},
                            .seconds = reduction_s,
                            .arrive_s = 0});
  return run;
}

TEST_CASE("a reduction that is ready early hides behind the backward pass, a late one does not") {
  CHECK(simulate_site(two_pipelines(1, 0.5)).step_s == doctest::Approx(12));
  CHECK(simulate_site(two_pipelines(1, 1)).step_s == doctest::Approx(13));
  CHECK(simulate_site(two_pipelines(1, 1)).reduction_wait_s == doctest::Approx(1));
}

TEST_CASE("a reduction waits for the slowest of its members, and a member for its reductions") {
  SiteRun run = two_pipelines(1, 1);
  run.pipelines[1] = even_run(1, 6);
  CHECK(simulate_site(run).step_s == doctest::Approx(19));
  run.reductions.push_back(run.reductions.front());
  CHECK(simulate_site(run).step_s == doctest::Approx(20));
}

TEST_CASE("sums come to a device one behind another, while the next are added up") {
  SiteRun run = two_pipelines(1, 1);
  run.reductions[0].arrive_s = 3;
  CHECK(simulate_site(run).step_s == doctest::Approx(12 + 1 + 3));
  run.reductions.push_back(run.reductions.front());
  CHECK(simulate_site(run).step_s == doctest::Approx(12 + 1 + 3 + 3));
}

TEST_CASE("the optimizer of the slowest stage ends the step") {
  SiteRun run = two_pipelines(1, 1);
  run.pipelines[0].stages[0].update_s = 0.5;
  run.pipelines[1].stages[0].update_s = 2;
  run.agree_s = 0.25;
  CHECK(simulate_site(run).step_s == doctest::Approx(15.25));
}

TEST_CASE("microbatches of a share add up to it, and only the last is smaller") {
  CHECK(cut_microbatches(7, 3) == std::vector<int64_t>{3, 3, 1});
  CHECK(cut_microbatches(6, 3) == std::vector<int64_t>{3, 3});
  CHECK(cut_microbatches(2, 3) == std::vector<int64_t>{2});
}

}  // namespace
}  // namespace pelago::plan
