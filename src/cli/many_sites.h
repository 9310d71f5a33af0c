// The door to the room of many sites. A build without gRPC answers each call with a Failure that
// says so.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "cli/run_view.h"
#include "cli/setup.h"
#include "cli/terminal.h"
#include "train/run_folder.h"

namespace pelago::cli {

struct ManySitesOutcome {
  bool stopped = false;  // by a stop request, with a checkpoint
  int64_t last_step = 0;
};

struct ManySitesStart {
  bool resume = false;
  std::string listen;  // the coordinator's address, "HOST:PORT"
};

/// Trains over every site of the plan; view and line show it on the way.
ManySitesOutcome train_many_sites(const train::RunFolder& folder,
                                  const Setup& setup,
                                  const plan::Plan& plan,
                                  const ManySitesStart& start,
                                  const std::atomic<int>& stop_requests,
                                  RunView& view,
                                  LiveLine& line);

/// Makes the certificates of a job; returns the lines to print.
void make_job_certificates(const std::filesystem::path& dir, const std::vector<std::string>& sites);
/// name and problem (empty: good) of each certificate in dir.
std::vector<std::pair<std::string, std::string>> check_job_certificates(
    const std::filesystem::path& dir);

/// The process of one site.
int run_site_agent(const std::filesystem::path& run_dir,
                   const std::string& site,
                   const std::string& coordinator,
                   const std::filesystem::path& certs_dir,
                   int64_t resume_step);

}  // namespace pelago::cli
