// What a simulation found, for people and for machines.
#pragma once

#include <string>
#include <vector>

#include "plan/simulation/run/run_play.h"

namespace pelago::plan {

/// What the planner foretold, beside which the simulation stands; 0: nothing.
struct Foretold {
  double tokens_s = 0;
  double step_s = 0;
  double line_mbit_s = 0;
};

/// How a step of a site, as played out stage by stage, spends its devices' time; shares of 1.
struct StepParts {
  std::string site;
  double step_s = 0;
  double compute = 0, bubble = 0, reduce = 0, update = 0;
  uint64_t num_events = 0;
};

struct SimulationReport {
  const RunModel* model = nullptr;  // outlives the report
  RunOutcome outcome;
  Foretold foretold;
  std::vector<StepParts> steps;
  uint64_t seed = 1;
  std::vector<std::string> notes;  // one sentence each
};

std::string to_table(const SimulationReport& report);
std::string to_json(const SimulationReport& report);

/// Utilisation and the bits/s it needs.
struct BandwidthRow {
  double utilisation = 0;
  double bits_s = 0;
  double on_grid_bits_s = 0;  // 0: no grid was asked for
};
std::string to_table(const RunModel& model, const std::vector<BandwidthRow>& rows);
std::string to_json(const RunModel& model, const std::vector<BandwidthRow>& rows);

}  // namespace pelago::plan
