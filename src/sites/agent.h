// The process that stands for one site among the others: it supervises the site's workers through
// train::SiteRunner, holds the global weights, the outer momentum and the kept quantisation error
// in host memory, and speaks to the coordinator and to the other sites' agents.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "train/checkpoint.h"

namespace pelago::sites {

struct AgentOptions {
  std::filesystem::path run_dir;  // holds job.toml and plan.json; the site's files go to sites/SITE
  std::string site;               // a name of plan.json
  std::string coordinator;        // "HOST:PORT"
  std::vector<std::string> coordinators;  // where another may take over
  std::filesystem::path certs_dir;        // ca.pem, SITE.pem, SITE.key
  std::optional<int64_t> resume_step;     // offer only this checkpoint; absent: every good one
};

/// By which sites find out that one has another plan.json or another model.
std::string plan_hash(const std::filesystem::path& run_dir, const train::TrainState& identity);

/// `pelago agent`: runs until the coordinator releases the site. SIGTERM: asks the coordinator to
/// stop all sites at a common quiet step; SIGINT is ignored (the terminal sends it to everyone).
/// Returns the exit code. Throws Failure: exit 2 if job, plan, site or certificates are wrong or
/// the coordinator refuses the site (naming what differs), exit 75 if the coordinator is gone.
int run_agent(const AgentOptions& options);

}  // namespace pelago::sites
