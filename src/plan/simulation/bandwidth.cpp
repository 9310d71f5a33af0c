#include "plan/simulation/bandwidth.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "plan/simulation/run/run_play.h"

namespace pelago::plan {

namespace {

constexpr double kWidest = 1e18;  // bits/s: as good as no line at all

/// Steps after which the exchanges repeat themselves.
int64_t rhythm_steps(const RunModel& model) {
  int64_t steps = 1;
  for (const ScheduledExchange& exchange : model.exchange.schedule) {
    steps = std::max(steps, exchange.period_steps);
  }
  return steps;
}

}  // namespace

double utilisation_of(const RunModel& model) {
  RunModel calm = model;
  calm.faults = {};
  double slowest_s = 0;
  for (SimulatedLine& line : calm.lines) line.rate_deviation = 0;
  for (const SimulatedSite& site : calm.sites) slowest_s = std::max(slowest_s, site.step_s);
  // The first rhythm waits for nothing; from then on each costs the same.
  const int64_t rhythm = rhythm_steps(model);
  RunOptions options;
  options.steps = 2 * rhythm;
  const double before_s = play_run(calm, options).played_s;
  options.steps = 4 * rhythm;
  const double after_s = play_run(calm, options).played_s;
  return static_cast<double>(2 * rhythm) * slowest_s / (after_s - before_s);
}

double utilisation_at(const RunModel& model, double bits_s) {
  RunModel alike = model;
  for (SimulatedLine& line : alike.lines) line.bytes_s = bits_s / 8;
  return utilisation_of(alike);
}

double bandwidth_needed(const RunModel& model, double utilisation) {
  if (!(utilisation > 0 && utilisation < 1)) {
    fail_usage("a utilisation of {:g} must lie between 0 and 1", utilisation);
  }
  if (model.exchange.schedule.empty() || model.sites.size() < 2) {
    fail_usage("{}: the learners exchange nothing, so they need no line", model.name);
  }
  const double most = utilisation_at(model, kWidest);
  if (most < utilisation) {
    fail_usage("{}: latency alone leaves a utilisation of {:.1f} %: no bandwidth gives {:g} %",
               model.name,
               100 * most,
               100 * utilisation);
  }
  double lo = 1, hi = kWidest;
  while (hi / lo > 1.0001) {
    const double middle = std::sqrt(lo * hi);
    (utilisation_at(model, middle) >= utilisation ? hi : lo) = middle;
  }
  return hi;
}

double nearest_on_grid(double value, double lo, double hi, int count) {
  const double step = std::log(hi / lo) / (count - 1);
  const double at = std::clamp(std::round(std::log(value / lo) / step), 0.0, count - 1.0);
  return lo * std::exp(at * step);
}

}  // namespace pelago::plan
