// A small run of real processes that is kept alive as a service is: a coordinator and one agent a
// site, each in a folder of its own as on a host of its own, whoever dies is started again with the
// same words. Faults are somebody else's business; here is who they can hit, and what the run says.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "chaos/run/cut.h"
#include "chaos/run/live_process.h"
#include "chaos/run/run_records.h"
#include "tests/wan/packet_line.h"

namespace pelago::chaos {

struct LiveRunOptions {
  int num_sites = 3;
  bool first_has_two = false;  // the first site has two devices, so that they reduce
  bool in_step = false;        // one pipeline over all sites
  double slowdown = 400;       // of the emulated chips: it sets the pace
  int64_t site_sequences = 2;  // of a step
  int64_t microbatch_sequences = 4;
  int64_t inner_steps = 8, fragments = 2, overlap_steps = 2;
  int64_t checkpoint_every_steps = 0, eval_every_steps = 0;
  double grace_s = 10, heartbeat_s = 1;
  double behind_s = 1;
  double rate_mbit_s = 200, rtt_ms = 20;  // of every line
  int64_t snapshot_every_steps = 2;       // to the agent's memory: 0: never
  bool is_examined = true;                // known answers and audits of the chips
  bool has_packets = false;  // lines of packets between namespaces, else emulated in transport
  bool shares_processors = false;  // each site a cgroup of its own, all of one weight
};

class LiveRun {
 public:
  /// folder: empty. data: a dataset. program: pelago. Throws if the lines cannot be built.
  LiveRun(std::filesystem::path folder,
          const std::filesystem::path& data,
          std::string program,
          const LiveRunOptions& options);
  LiveRun(const LiveRun&) = delete;
  LiveRun& operator=(const LiveRun&) = delete;
  ~LiveRun();

  /// Until every site has done so many steps. Throws Failure with last words if not.
  void start(int64_t steps, double timeout_s);
  /// Reads on and starts again whoever ended, until ready() holds. Returns whether it came to that.
  bool wait_until(const std::function<bool()>& ready, double timeout_s, double every_s = 0.02);
  void look_after();
  /// SIGTERM to the coordinator, and to the end. Returns the seconds it took; throws if it fails.
  double stop(double timeout_s);

  const LiveRunOptions& options() const { return options_; }
  const std::vector<std::string>& sites() const { return sites_; }
  RunRecords& records() { return records_; }
  std::filesystem::path run_dir() const { return folder_ / "runs" / "chaos"; }
  std::filesystem::path site_run_dir(const std::string& site) const {
    return folder_ / site / "run";
  }
  std::filesystem::path log_of(const std::string& who) const { return folder_ / (who + ".log"); }

  pid_t coordinator() const;
  pid_t agent(const std::string& site) const;                   // -1: it does not run
  std::vector<pid_t> workers(const std::string& site) const;    // in rank order
  std::vector<pid_t> site_pids(const std::string& site) const;  // its agent and its workers
  /// Whoever is held down is not started again.
  void hold_down(const std::string& who) { held_down_.insert(who); }
  void let_up(const std::string& who) { held_down_.erase(who); }
  int num_restarts(const std::string& who) const;
  /// What must not happen: a program that ended with an exit code that says "do not try again".
  const std::string& problem() const { return problem_; }

  std::string space_of(const std::string& who) const;    // its namespace
  std::string address_of(const std::string& who) const;  // its address on the packet-level line
  wan::PacketLine& line() { return *line_; }

 private:
  struct Service {
    std::vector<std::string> words, words_again;
    std::filesystem::path folder, cgroup;
    std::unique_ptr<LiveProcess> process;
    int num_starts = 0;
    bool is_over = false;  // ended as it should
  };

  void write_job(const std::filesystem::path& data) const;
  std::string fleet() const;
  int place_of(const std::string& who) const;
  std::vector<std::string> at(const std::string& who) const;
  void start_service(const std::string& who);
  std::string last_words() const;

  std::filesystem::path folder_;
  std::string program_;
  LiveRunOptions options_;
  std::vector<std::string> sites_;
  std::unique_ptr<wan::PacketLine> line_;
  RunRecords records_;
  std::map<std::string, Service> services_;
  std::set<std::string> held_down_;
  std::string problem_;
  std::string coordinator_address_;
};

inline constexpr const char* kCoordinator = "coordinator";

}  // namespace pelago::chaos
