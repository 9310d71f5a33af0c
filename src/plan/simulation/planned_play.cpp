#include "plan/simulation/planned_play.h"

#include <algorithm>
#include <memory>

#include "base/error.h"
#include "plan/simulation/run/site_clock.h"
#include "plan/simulation/step/step_play.h"

namespace pelago::plan {

namespace {

/// A site's steps, as long as their slowest devices make them.
class SiteSteps {
 public:
  SiteSteps(const PlannedStep& step, double deviation, Rng rng)
      : step_(step), play_(step.run, step.line_of), deviation_(deviation), rng_(rng) {
    calm_ = play_.play();
    sum_ = calm_;
    num_played_ = 1;
  }

  double calm_s() const { return calm_.step_s; }

  double next_s() {
    if (deviation_ <= 0) return calm_.step_s;
    factors_.resize(play_.num_stages());
    for (size_t i = 0; i < factors_.size(); ++i) {
      const auto chips = static_cast<double>(step_.chips_of_stage[i]);
      factors_[i] = std::max(0.1, 1 + deviation_ * largest_normal(chips, rng_));
    }
    const StepOutcome outcome = play_.play(factors_);
    sum_.step_s += outcome.step_s;
    sum_.compute_s += outcome.compute_s;
    sum_.bubble_s += outcome.bubble_s;
    sum_.reduce_s += outcome.reduce_s;
    sum_.update_s += outcome.update_s;
    num_played_ += 1;
    return outcome.step_s;
  }

  /// Every microbatch of a step, beginning at begin_s of the trace.
  double trace_step(StepTracks& tracks, double begin_s) {
    return play_.play({}, &tracks, begin_s).step_s;
  }

  StepTracks make_tracks(Trace& trace) const {
    StepTracks tracks;
    tracks.trace = &trace;
    const std::string group = "stages of " + step_.site;
    for (const std::string& name : step_.stage_names) {
      tracks.stages.push_back(trace.add_track(group, name));
    }
    if (!step_.run.reductions.empty()) {
      const uint32_t row = trace.add_track(group, "reductions");
      tracks.reductions.assign(tracks.stages.size(), row);
    }
    return tracks;
  }

  StepParts parts() const {
    const double all_s = sum_.step_s * static_cast<double>(play_.num_stages());
    return {step_.site,
            sum_.step_s / static_cast<double>(num_played_),
            sum_.compute_s / all_s,
            sum_.bubble_s / all_s,
            sum_.reduce_s / all_s,
            sum_.update_s / all_s,
            play_.num_events()};
  }

 private:
  const PlannedStep& step_;  // outlives this
  StepPlay play_;
  double deviation_;
  Rng rng_;
  StepOutcome calm_, sum_;
  int64_t num_played_ = 0;
  std::vector<double> factors_;
};

}  // namespace

SimulationReport play_plan(const Plan& plan,
                           const JobConfig& job,
                           const PlannedOptions& options,
                           RunModel& model) {
  PlannedRun planned = run_of_plan(plan, job);
  std::vector<SiteSteps> steps;
  for (size_t i = 0; i < planned.steps.size(); ++i) {
    steps.emplace_back(planned.steps[i],
                       options.faults.step_deviation,
                       Rng(options.run.seed).fork("step noise", i));
    planned.model.sites[i].step_s = steps[i].calm_s();
  }
  model = std::move(planned.model);
  model.faults = options.faults;
  model.faults.step_deviation = 0;  // it is in the steps
  RunOptions run = options.run;
  run.step_seconds = [&steps](size_t site_idx, int64_t) { return steps[site_idx].next_s(); };
  SimulationReport report;
  report.model = &model;
  report.seed = run.seed;
  report.outcome = play_run(model, run);
  report.foretold.tokens_s = plan.predicted_tokens_s;
  for (const SitePlan& site : plan.sites) {
    report.foretold.step_s = std::max(report.foretold.step_s, site.predicted_step_s);
  }
  report.foretold.line_mbit_s = plan.predicted_line_mbit_s;
  for (const SiteSteps& site : steps) {
    report.steps.push_back(site.parts());
    report.outcome.num_events += report.steps.back().num_events;
  }
  if (run.trace != nullptr) {
    for (SiteSteps& site : steps) {
      StepTracks tracks = site.make_tracks(*run.trace);
      double begin_s = 0;
      for (int64_t i = 0; i < options.trace_stage_steps; ++i) {
        begin_s += site.trace_step(tracks, begin_s);
      }
    }
  }
  return report;
}

}  // namespace pelago::plan
