#include "plan/simulation/run/run_model.h"

#include <set>

#include "base/error.h"

namespace pelago::plan {

namespace {

void check_site(const RunModel& model, const SimulatedSite& site) {
  if (site.step_s <= 0) {
    fail_usage(
        "{}: a step of {} takes {} s: it must be above 0", model.name, site.name, site.step_s);
  }
  if (site.num_layers < 1 || site.chips <= 0) {
    fail_usage("{}: {} has {} layers on {} chips: both must be above 0",
               model.name,
               site.name,
               site.num_layers,
               site.chips);
  }
}

void check_schedule(const RunModel& model) {
  for (const ScheduledExchange& exchange : model.exchange.schedule) {
    if (exchange.period_steps < 1 || exchange.overlap_steps >= exchange.period_steps) {
      fail_usage(
          "{}: an exchange every {} steps cannot be merged {} steps later: the overlap must be "
          "shorter than the period",
          model.name,
          exchange.period_steps,
          exchange.overlap_steps);
    }
    for (const ExchangePart& part : exchange.parts) {
      for (const SimulatedSite& site : model.sites) {
        PELAGO_ASSERT(part.layer_idx < site.num_layers, "an exchange's parts are of the layers");
      }
    }
  }
}

}  // namespace

void check_model(const RunModel& model) {
  if (model.sites.empty()) fail_usage("{}: there is no site to simulate", model.name);
  for (const SimulatedSite& site : model.sites) check_site(model, site);
  check_schedule(model);
  std::set<std::pair<size_t, size_t>> joined;
  for (const SimulatedLine& line : model.lines) {
    const std::string& from = model.sites[line.from].name;
    const std::string& to = model.sites[line.to].name;
    if (line.bytes_s <= 0 || line.delay_s < 0 || line.loss < 0 || line.loss >= 1) {
      fail_usage(
          "{}: the line {} - {} carries {} bytes/s after {} s with a loss of {}: it must "
          "carry something, take no time below 0, and lose less than all",
          model.name,
          from,
          to,
          line.bytes_s,
          line.delay_s,
          line.loss);
    }
    joined.insert({line.from, line.to});
  }
  if (model.exchange.schedule.empty()) return;
  for (size_t from = 0; from < model.sites.size(); ++from) {
    for (size_t to = 0; to < model.sites.size(); ++to) {
      if (from == to || joined.contains({from, to})) continue;
      fail_usage("{}: no line joins {} and {}: every two sites that exchange need one",
                 model.name,
                 model.sites[from].name,
                 model.sites[to].name);
    }
  }
}

}  // namespace pelago::plan
