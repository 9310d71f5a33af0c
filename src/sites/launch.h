// Many sites from one command: the coordinator runs in this process. On one machine each site's
// agent is a child process that joins with its token as one on another host would; agents that die
// are started again, and none outlives this process.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "plan/fleet.h"
#include "plan/job.h"
#include "plan/plan.h"
#include "sites/join/join_token.h"
#include "train/messages.h"
#include "train/run_folder.h"

namespace pelago::sites {

class EtcdStore;

/// What a site has sent over its lines since it started.
struct LineReport {
  std::string site;
  int64_t completed_steps = 0;
  int64_t sent_bytes = 0;              // to other sites, whole frames, TLS not counted
  int64_t exchange_payload_bytes = 0;  // of these: quantised values and their scales
  int64_t exchanged_values = 0;        // parameters whose exchange was committed with this site
};

struct SiteSummary {
  std::string site;
  int64_t steps = 0;
  int64_t tokens = 0;
  double train_s = 0;           // sum of step times
  double wait_line_s = 0;       // of these: waiting for a merge that had not come
  int64_t commits = 0;          // that it was a member of
  int64_t missing_commits = 0;  // made without it; it fetched the result instead
  int64_t restarts = 0;
  int64_t sent_bytes = 0;
  /// Bytes sent for exchanges a parameter exchanged: 0.42 for two sites at 4 bits (scales counted).
  double sent_bytes_per_parameter = 0;
};

struct ManySitesSummary {
  std::vector<SiteSummary> sites;  // in plan order
  int64_t commits = 0;
  int64_t differing_hashes = 0;  // times a site's result differed from the majority's; 0 is healthy
  bool stopped = false;          // ended by a stop request, before the last step
  bool deposed = false;          // another coordinator goes on with the run
  int64_t last_step = 0;         // completed steps, the same at every site that ended
  double wall_s = 0;
};

/// All are optional and are called on the thread that called run_many_sites(). Steps, evaluations
/// and events are already recorded in the run folder when these run.
struct ManySitesCallbacks {
  std::function<void(const train::StepReport&)> on_step;
  std::function<void(const train::EvaluationReport&)> on_evaluation;
  std::function<void(const std::string& name, const std::string& fields_json)> on_event;
  std::function<void(const LineReport&)> on_line;  // about once a heartbeat and site
  /// Once, where people start the agents: sites may join at this address.
  std::function<void(const std::string& address)> on_listening;
};

struct ManySitesOptions {
  bool resume = false;  // protocol/round_lifecycle.cpp says from which checkpoint; none: a Failure
  std::string listen = "127.0.0.1:0";  // the coordinator's address; port 0: any free one
  bool starts_agents = true;           // false: people start them, on any host
  TokenTerms tokens;                   // of the join tokens that are made
  /// Where the state is, if not in the run folder alone; leads, and outlives the run.
  EtcdStore* store = nullptr;
};

/// Runs the whole plan. stop_requests: 0 go on; 1 all sites stop at a common quiet step with a
/// checkpoint; 2 or more: everything is killed at once (throws Failure). A signal handler may raise
/// it. Throws Failure with a site's last words if it cannot start, or after its fifth restart.
ManySitesSummary run_many_sites(const train::RunFolder& run_folder,
                                const plan::JobConfig& job,
                                const plan::FleetConfig& fleet,
                                const plan::Plan& plan,
                                const std::atomic<int>& stop_requests,
                                const ManySitesOptions& options,
                                const ManySitesCallbacks& callbacks);

}  // namespace pelago::sites
