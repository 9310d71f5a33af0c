// The door to the room of many sites. A build without gRPC answers each call with a Failure that
// says so.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/run_view.h"
#include "cli/setup.h"
#include "cli/terminal.h"
#include "train/run_folder.h"

namespace pelago::sites {
class EtcdStore;
}

namespace pelago::cli {

/// The seat of a run's coordinator, where the state is in etcd; given up with this.
struct Seat {
  explicit Seat(std::unique_ptr<sites::EtcdStore> taken);
  ~Seat();
  std::unique_ptr<sites::EtcdStore> store;
  std::string job_toml, plan_json;  // of an earlier coordinator of the run; empty: there was none
};
struct SeatWanted {
  std::string state;                // etcd://HOST:PORT[,HOST:PORT...]/PREFIX
  std::filesystem::path certs_dir;  // of etcds://
  std::string who;                  // for people
  bool fresh = false;               // forget what is there
};
/// Waits until the seat is free and takes it; null: a stop was requested first.
std::unique_ptr<Seat> take_seat(const SeatWanted& wanted, const std::atomic<int>& stop_requests);
/// Certificates and tokens as the earlier coordinator had them.
void fetch_run_files(Seat& seat, const std::filesystem::path& run_dir);

struct ManySitesOutcome {
  bool stopped = false;  // by a stop request, with a checkpoint
  bool deposed = false;  // another coordinator goes on with the run
  int64_t last_step = 0;
};

struct ManySitesStart {
  bool resume = false;
  std::string listen;         // the coordinator's address, "HOST:PORT"
  bool starts_agents = true;  // false: people start them, on any host
  int64_t token_valid_s = 24 * 3600;
  int64_t token_uses = 1;
  Seat* seat = nullptr;  // null: the state is in the run folder
  std::function<void(const train::StepReport&)> on_step = {};  // in place of drawing the line
};

/// Trains over every site of the plan; view and line show it on the way.
ManySitesOutcome train_many_sites(const train::RunFolder& folder,
                                  const Setup& setup,
                                  const plan::Plan& plan,
                                  const ManySitesStart& start,
                                  const std::atomic<int>& stop_requests,
                                  RunView& view,
                                  LiveLine& line);

/// Throws Failure (exit 2) if the job wants copies of checkpoints and its place or this process's
/// account are wrong.
void check_copies(const plan::JobConfig& job);

/// Copies of the checkpoints of a run of one site, in the store that its job names.
class OneSiteCopies {
 public:
  virtual ~OneSiteCopies() = default;
  virtual void offer(int64_t step) = 0;
  /// Name and JSON fields of what has happened since.
  virtual std::vector<std::pair<std::string, std::string>> take_events() = 0;
  /// Waits for the last one, for ten minutes at most.
  virtual void finish() = 0;
};
/// Null if the job wants none. resume: if there is no checkpoint on the disk, the newest copy is
/// fetched. Throws Failure (exit 2 if place or account are wrong).
std::unique_ptr<OneSiteCopies> open_one_site_copies(const train::RunFolder& folder,
                                                    const plan::JobConfig& job,
                                                    const plan::Plan& plan,
                                                    bool resume);
/// plan.json of a run of which this machine has nothing, from its copies. Nothing if there is none,
/// or the job wants none.
std::optional<std::string> fetch_plan_of_run(const plan::JobConfig& job);

struct JobCertificates {
  std::filesystem::path dir;
  std::vector<std::string> sites;
  int64_t valid_s = 365LL * 24 * 3600;
};
/// Makes a job's certificates, those that are not there yet.
void make_job_certificates(const JobCertificates& wanted);
/// New certificates for the keys of dir; returns whose.
std::vector<std::string> renew_job_certificates(const JobCertificates& wanted);
/// A new join token of a run; returns its file.
std::filesystem::path make_join_token(const std::filesystem::path& run_dir,
                                      const std::string& site,
                                      int64_t valid_s,
                                      int64_t uses);
/// What became of every token of a run of several sites: a JSON array in plan order, "[]" for a run
/// that keeps no ledger. Throws Failure if its journal cannot be read.
std::string token_accounts_json(const std::filesystem::path& run_dir, const plan::Plan& plan);
/// name and problem (empty: good) of each certificate in dir.
std::vector<std::pair<std::string, std::string>> check_job_certificates(
    const std::filesystem::path& dir);

/// The process of one site, either joining with a token or with certificates it was given.
struct SiteAgentStart {
  std::string join;  // "HOST:PORT[,HOST:PORT...]"; empty: the four below are given
  std::filesystem::path token, data_dir;  // with join
  std::filesystem::path run_dir;          // with join it may be empty
  std::string site, coordinator;
  std::filesystem::path certs_dir;
  int64_t resume_step = -1;
};
int run_site_agent(const SiteAgentStart& start);

}  // namespace pelago::cli
