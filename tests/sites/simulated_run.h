// A whole run of several sites in virtual time: the real protocol on both sides over a network that
// loses, delays and doubles frames, with sites that train at their own pace, die and come back.
// Workers are replaced by arithmetic: a step moves every local weight by a seeded amount.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "sites/protocol/member.h"
#include "sites/protocol/round_machine.h"
#include "sites/transport/loopback.h"

namespace pelago::sites {

struct SimulatedRunOptions {
  int64_t num_sites = 3;
  int64_t num_values = 1000;
  int64_t num_crashes = 0;  // of random sites at random moments
  bool has_zombie = false;  // a site is frozen for a while and then goes on
  double restart_s = 3;     // until a crashed site is back
  double stop_after_s = 0;  // 0: never
  int bits = 4;
  double limit_s = 4000;  // of virtual time: longer is no progress
  train::ExchangeSchedule schedule{
      .inner_steps = 12, .num_fragments = 3, .overlap_steps = 1, .num_steps = 40};
  LoopbackOptions network = {};
};

/// Moves as workers do: steps, snapshots, waits for merges, takes them half and half.
struct SimulatedWorkers {
  std::vector<float> local, snapshot;
  int64_t completed_steps = 0;
  int64_t final_fragment = -1;  // the last exchanges, one after another
  std::optional<int64_t> waits_for;
  std::optional<int64_t> stop_step;
  double next_step_s = 0;
  bool trains = false;
  bool has_finished = false;
};

class SimulatedRun {
 public:
  explicit SimulatedRun(const SimulatedRunOptions& options);
  /// Runs until every site has left. Returns what went wrong, or nothing.
  std::string run();

  const RoundMachine& rounds() const { return *rounds_; }
  int64_t num_restarts() const { return num_restarts_; }
  /// Completed steps of each site that ended.
  const std::vector<int64_t>& last_steps() const { return last_steps_; }
  const std::vector<std::string>& last_hashes() const { return last_hashes_; }
  int64_t num_refused() const { return num_refused_; }
  /// Commits taken back because all that held them had died.
  int64_t num_lost_commits() const { return num_lost_commits_; }

 private:
  struct Site {
    std::string name;
    int64_t num_starts = 0;
    double step_s = 1;
    std::unique_ptr<Transport> transport;
    std::unique_ptr<GlobalState> state;
    std::unique_ptr<Member> member;
    SimulatedWorkers workers;
    double workers_ready_s = -1;
    double heartbeat_s = 0;
    double restart_s = -1;  // dead until then
    double frozen_s = -1;   // does nothing until then
    bool has_left = false;
  };

  void start(Site& site);
  void crash(Site& site);
  void turn(Site& site);
  void turn_coordinator();
  void carry_out(Site& site, MemberActions actions);
  void train(Site& site);
  void take_snapshot(Site& site, int64_t exchange);
  void take_merge(Site& site, int64_t exchange, int64_t fragment);
  void check_commit(const Commit& commit);
  void check_applied(const Site& site);
  /// Where everyone stands, for a complaint.
  std::string where() const;
  void complain(const std::string& what);

  SimulatedRunOptions options_;
  ManualClock clock_;
  Rng rng_;
  LoopbackNetwork network_;
  std::unique_ptr<Transport> coordinator_;
  std::unique_ptr<RoundMachine> rounds_;
  std::vector<train::Fragment> fragments_;
  std::vector<Site> sites_;
  std::map<int64_t, std::string> committed_;  // exchange -> hash
  int64_t num_restarts_ = 0;
  int64_t num_refused_ = 0;
  int64_t num_lost_commits_ = 0;
  std::vector<int64_t> last_steps_;
  std::vector<std::string> last_hashes_;
  std::string complaint_;
};

}  // namespace pelago::sites
