// Joining a run with a token: from a HOST:PORT and a file to a folder with everything that a site's
// agent needs. A site that starts again goes the same way: its key is in already, and it gets a
// fresh certificate.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "sites/agent.h"

namespace pelago::sites {

struct JoinOptions {
  std::vector<std::string> addresses;  // where a coordinator may be, "HOST:PORT"
  std::filesystem::path token;
  std::filesystem::path run_dir;   // empty: runs/RUN, as the token calls it
  std::filesystem::path data_dir;  // the dataset on this machine; empty: where the job says
  double patience_s = 60;          // for a coordinator that is not there yet
};

/// Makes run_dir with job.toml, plan.json and certs/. Throws Failure: exit 2 if the token is
/// refused (in the coordinator's words), the coordinator is of another job, or the folder holds
/// another run; exit 75 if nobody answers.
AgentOptions join_run(const JoinOptions& options);

}  // namespace pelago::sites
