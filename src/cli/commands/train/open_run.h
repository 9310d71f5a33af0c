// How `pelago train` and `pelago coordinator` come to a run folder and its plan: made anew, gone on
// with, or found where an earlier coordinator left them.
#pragma once

#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "cli/many_sites.h"
#include "cli/run_view.h"
#include "cli/setup.h"
#include "plan/plan.h"
#include "train/run_folder.h"

namespace pelago::cli {

struct TrainArguments {
  std::string job, fleet, plan, listen = "127.0.0.1:0";
  std::vector<std::string> overrides, probes;
  bool resume = false, fresh = false, no_probe = false;
  bool starts_agents = true;
  double token_hours = 24;
  int64_t token_uses = 1;
  std::string state, state_certs;
  std::optional<int> web;  // port of the dashboard, if there shall be one
};

/// The run folder, its plan and what is known of it so far.
struct OpenRun {
  train::RunFolder folder;
  plan::Plan plan;
  RunView view;
  std::string left_free = {};  // chips of the fleet that a new run does not use
};

/// Plans, or reads the plan of a run that goes on. stop_requests: checked before the run folder is
/// kept. Throws Failure.
OpenRun open_run(const TrainArguments& arguments,
                 const Setup& setup,
                 const std::atomic<int>& stop_requests);
/// A run that another coordinator has begun: its plan, its certificates, and this host's own
/// record. Throws Failure.
OpenRun open_shared_run(const TrainArguments& arguments, const Setup& setup, Seat& seat);

}  // namespace pelago::cli
