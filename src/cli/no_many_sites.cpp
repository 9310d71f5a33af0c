// Takes the place of many_sites.cpp in a build with -DPELAGO_SITES=OFF.
#include "base/error.h"
#include "cli/many_sites.h"

// There is none in this build.
class pelago::sites::EtcdStore {};

namespace pelago::cli {

namespace {

[[noreturn]] void refuse() {
  fail_usage(
      "this pelago was built for one site (-DPELAGO_SITES=OFF); build with -DPELAGO_SITES=ON for "
      "more");
}

}  // namespace

ManySitesOutcome train_many_sites(const train::RunFolder&,
                                  const Setup&,
                                  const plan::Plan&,
                                  const ManySitesStart&,
                                  const std::atomic<int>&,
                                  RunView&,
                                  LiveLine&) {
  refuse();
}

Seat::Seat(std::unique_ptr<sites::EtcdStore>) { refuse(); }

Seat::~Seat() = default;

std::unique_ptr<Seat> take_seat(const SeatWanted&, const std::atomic<int>&) { refuse(); }

void fetch_run_files(Seat&, const std::filesystem::path&) { refuse(); }

void check_copies(const plan::JobConfig& job) {
  if (!job.checkpoint.copy_to.empty()) refuse();
}

std::unique_ptr<OneSiteCopies> open_one_site_copies(const train::RunFolder&,
                                                    const plan::JobConfig&,
                                                    const plan::Plan&,
                                                    bool) {
  return nullptr;
}

std::optional<std::string> fetch_plan_of_run(const plan::JobConfig&) { return std::nullopt; }

void make_job_certificates(const JobCertificates&) { refuse(); }

std::vector<std::string> renew_job_certificates(const JobCertificates&) { refuse(); }

std::filesystem::path make_join_token(const std::filesystem::path&,
                                      const std::string&,
                                      int64_t,
                                      int64_t) {
  refuse();
}

std::string token_accounts_json(const std::filesystem::path&, const plan::Plan&) { return "[]"; }

std::vector<std::pair<std::string, std::string>> check_job_certificates(
    const std::filesystem::path&) {
  refuse();
}

int run_site_agent(const SiteAgentStart&) { refuse(); }

}  // namespace pelago::cli
