// Steps event by event, against the closed play of pipeline_time.h and by hand; plans played whole.
#include "plan/simulation/step/step_play.h"

#include <doctest/doctest.h>

#include "base/rng.h"
#include "plan/fixtures.h"
#include "plan/simulation/planned_play.h"

namespace pelago::plan {
namespace {

/// Uneven stages, some of them late to send, with buckets over all pipelines.
SiteRun random_site(Rng& rng) {
  SiteRun run;
  const size_t num_pipelines = 1 + rng.next_below(4);
  const size_t num_stages = 1 + rng.next_below(5);
  for (size_t p = 0; p < num_pipelines; ++p) {
    PipelineRun pipeline;
    for (size_t s = 0; s < num_stages; ++s) {
      StageCosts costs;
      costs.forward = {0.001, 0.01 * (1 + rng.next_uniform())};
      costs.backward = {0.001, 0.02 * (1 + rng.next_uniform())};
      costs.message = {1e-4, 2e-3 * rng.next_uniform()};
      costs.update_s = 0.01;
      pipeline.stages.push_back(costs);
    }
    pipeline.sequences.assign(1 + rng.next_below(12), 1);
    run.pipelines.push_back(std::move(pipeline));
  }
  for (size_t s = num_stages; s-- > 0 && num_pipelines > 1;) {
    for (const double ratio : {0.5, 1.0}) {
      Reduction reduction;
      for (size_t p = 0; p < num_pipelines; ++p) reduction.members.push_back({p, s, ratio});
      reduction.seconds = 0.05 * rng.next_uniform();
      run.reductions.push_back(std::move(reduction));
    }
  }
  run.agree_s = 0.001;
  return run;
}

SimulationReport play_example(const std::string& name,
                              const PlannedOptions& options,
                              RunModel& model,
                              const std::vector<std::string>& overrides = {}) {
  const std::filesystem::path examples =
      std::filesystem::path(__FILE__).parent_path() / "../../../examples";
  const JobConfig job = read_job(examples / (name + ".job.toml"), overrides);
  const Plan plan = make_plan(
      job, read_fleet(examples / (name + ".fleet.toml"), catalogue()), catalogue(), nullptr, 2);
  return play_plan(plan, job, options, model);
}

}  // namespace

TEST_CASE("where no copies meet, a step takes as long event by event as in the closed play") {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    INFO("seed " << seed);
    Rng rng(seed);
    const SiteRun run = random_site(rng);
    const StepOutcome outcome = StepPlay(run).play();
    CHECK(outcome.step_s == doctest::Approx(simulate_site(run).step_s).epsilon(1e-9));
    double stages = 0;
    for (const PipelineRun& pipeline : run.pipelines) {
      stages += static_cast<double>(pipeline.stages.size());
    }
    const double sum = outcome.compute_s + outcome.bubble_s + outcome.reduce_s + outcome.update_s;
    CHECK(sum == doctest::Approx(stages * outcome.step_s));
  }
}

TEST_CASE("even stages make the bubble of 1F1B") {
  PipelineRun pipeline;
  StageCosts costs;
  costs.forward = {0, 1};
  costs.backward = {0, 2};
  pipeline.stages.assign(4, costs);
  pipeline.sequences.assign(8, 1);
  SiteRun run;
  run.pipelines = {pipeline};
  const StepOutcome outcome = StepPlay(run).play();
  CHECK(outcome.step_s == doctest::Approx((8 + 4 - 1) * 3));  // (m + S - 1)(f + b)
  CHECK(outcome.bubble_s / 4 == doctest::Approx(3 * 3));
}

TEST_CASE("pipelines that share a line wait for each other on it") {
  PipelineRun pipeline;
  StageCosts costs;
  costs.forward = {0, 1};
  costs.backward = {0, 2};
  costs.line = {0, 2};
  pipeline.stages.assign(2, costs);
  pipeline.sequences.assign(6, 1);
  SiteRun run;
  run.pipelines = {pipeline, pipeline};
  const double apart_s = StepPlay(run, {{0, -1}, {1, -1}}).play().step_s;
  const double shared_s = StepPlay(run, {{0, -1}, {0, -1}}).play().step_s;
  CHECK(shared_s > apart_s + 2);
  CHECK(shared_s >= 2 * 6 * 2);  // the line carries 12 messages of 2 s each way
}

TEST_CASE("one late device makes its whole site late, by as much as it computes") {
  Rng rng(4);
  const SiteRun run = random_site(rng);
  StepPlay play(run);
  std::vector<double> factors(play.num_stages(), 1.0);
  const StepOutcome calm = play.play(factors);
  factors[0] = 2;
  const StepOutcome late = play.play(factors);
  CHECK(late.step_s > calm.step_s);
  CHECK(late.step_s <= 2 * calm.step_s);
  factors[0] = 1;
  CHECK(play.play(factors).step_s == calm.step_s);  // nothing is left of the step before
}

TEST_CASE("a plan of two sites, played, takes what the plan foretells") {
  RunModel model;
  PlannedOptions options;
  options.run.steps = 100;
  const SimulationReport report = play_example("two-sites", options, model);
  CHECK(report.outcome.tokens_s() == doctest::Approx(report.foretold.tokens_s).epsilon(0.05));
  CHECK(report.outcome.exchange_s.size() >= 15);
  double bytes = 0;
  for (const LineOutcome& line : report.outcome.lines) bytes += line.bytes;
  CHECK(bytes > 0);
  REQUIRE(report.steps.size() == 2);
  CHECK(report.steps[0].compute > 0.2);
}

TEST_CASE("a pipeline over two sites, played, takes what the plan foretells") {
  RunModel model;
  PlannedOptions options;
  options.run.steps = 5;
  const SimulationReport report =
      play_example("two-sites", options, model, {"sites.across=pipeline"});
  REQUIRE(model.sites.size() == 1);
  CHECK(report.outcome.tokens_s() == doctest::Approx(report.foretold.tokens_s).epsilon(0.1));
}

TEST_CASE("a plan's trace has every microbatch of the first steps, and the seed decides the rest") {
  const auto trace_of = [](uint64_t seed) {
    RunModel model;
    Trace trace;
    PlannedOptions options;
    options.run.steps = 30;
    options.run.seed = seed;
    options.run.trace = &trace;
    options.faults.step_deviation = 0.05;
    play_example("one-site", options, model);
    return to_chrome_json(trace);
  };
  const std::string trace = trace_of(3);
  CHECK(contains(trace, "\"name\":\"B0\",\"cat\":\"backward\""));
  CHECK(contains(trace, "\"name\":\"step 29\""));
  CHECK(trace == trace_of(3));
  CHECK(trace != trace_of(4));
}

TEST_CASE("a drawing has a row for each track, and stays small however many spans there are") {
  Trace trace;
  const uint32_t busy = trace.add_track("stages <of> a", "p0 s0");
  trace.add_track("stages <of> a", "p0 s1");
  for (int i = 0; i < 100'000; ++i) {
    trace.add(busy, "F", SpanKind::kForward, i * 0.001, i * 0.001 + 0.0009);
  }
  const std::string svg = to_svg(trace, {.title = "a & b"});
  CHECK(contains(svg, "a &amp; b"));
  CHECK(contains(svg, "stages &lt;of&gt; a"));
  CHECK(contains(svg, "p0 s1"));
  CHECK(svg.size() < 100'000);
}

}  // namespace pelago::plan
