// A whole run of several sites in virtual time: the real protocol on both sides over a network that
// loses, delays, doubles and cuts, with sites that train at their own pace, die between any two
// actions and come back, earlier starts that wake up late, and a coordinator that dies too. Workers
// are replaced by arithmetic: a step moves every local weight by a seeded amount. Everything
// follows from the seed, so a run that breaks breaks again.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "sites/protocol/member.h"
#include "sites/protocol/round_machine.h"
#include "sites/simulation/faulty_code.h"
#include "sites/simulation/simulated_coordinator.h"
#include "sites/simulation/site/simulated_disk.h"
#include "sites/simulation/site/simulated_workers.h"
#include "sites/simulation/truth.h"
#include "sites/transport/loopback.h"

namespace pelago::sites {

inline constexpr int64_t kSequenceTokens = 100;

struct SimulatedRunOptions {
  int64_t num_sites = 3;
  int64_t num_values = 1000;
  int64_t num_crashes = 0;     // of random sites at random moments
  int64_t num_ghosts = 0;      // crashes after which the old start wakes up beside the new one
  int64_t num_partitions = 0;  // between two ends, one way or both, steady or on and off
  int64_t num_coordinator_crashes = 0;
  int64_t num_coordinators = 1;   // more than one: they share a store
  int64_t num_store_outages = 0;  // no quorum for seconds
  int64_t num_store_cuts = 0;     // of the line between one coordinator and the store
  bool has_power_cut = false;     // everything dies, and goes on from a checkpoint
  bool loses_disk = false;        // then one site's, with all its checkpoints, is gone
  int64_t checkpoint_every_steps = 8;
  double site_disk_s = 0;   // until a checkpoint is safe
  bool has_zombie = false;  // a site is frozen for a while and then goes on
  bool has_frozen_coordinator = false;
  double lies = 0;          // this share of the leaves that site0 gives away is wrong
  double restart_s = 3;     // until a crashed site is back
  double stop_after_s = 0;  // 0: never
  double slower_at_s = 0;   // from then on one site takes three times as long; 0: never
  double disk_s = 0;        // the coordinator's disk, or the way to the store, takes up to so long
  int bits = 4;
  int64_t part_values = 1 << 20;              // a fragment of twice as many is exchanged in parts
  double faults_until_s = 30, limit_s = 600;  // of virtual time: longer is no progress
  train::ExchangeSchedule schedule{
      .inner_steps = 12, .num_fragments = 3, .overlap_steps = 1, .num_steps = 40};
  LoopbackOptions network = {};
  const PlantedBug* bug = nullptr;  // outlives the run
};

/// Draws everything that can go wrong from the seed.
SimulatedRunOptions any_run(uint64_t seed);

class SimulatedRun {
 public:
  explicit SimulatedRun(const SimulatedRunOptions& options);
  /// Runs until every site has left. Returns what went wrong, or nothing.
  std::string run();

  /// Of the coordinator that leads; null: none does now.
  const RoundMachine* leading() const;
  const RoundMachine& rounds() const { return *leading(); }
  const SimulatedStore& store() const { return store_; }
  int64_t num_terms() const { return sum(&SimulatedCoordinator::num_starts); }
  int64_t num_differing() const { return sum(&SimulatedCoordinator::num_differing); }
  uint64_t trace() const;
  const Truth& truth() const { return truth_; }
  int64_t num_restarts() const { return num_restarts_; }
  int64_t num_power_cuts() const { return num_power_cuts_; }
  /// Completed steps of each site that ended.
  const std::vector<int64_t>& last_steps() const { return last_steps_; }
  const std::vector<std::string>& last_hashes() const { return last_hashes_; }
  size_t num_finished() const { return finished_.size(); }
  int64_t num_refused() const { return num_refused_ + sum(&SimulatedCoordinator::num_refused); }
  int64_t num_lies() const { return num_lies_; }
  int64_t num_lost_disks() const { return num_lost_disks_; }
  /// Leaves of joiners that travelled, and those that their own disks still had.
  int64_t num_leaves_fetched() const { return num_leaves_fetched_; }
  int64_t num_leaves_kept() const { return num_leaves_kept_; }
  double virtual_s() const { return clock_.now_s(); }
  int64_t num_share_changes() const;
  int64_t num_left_out() const { return num_left_out_; }

 private:
  struct Site {
    std::string name;
    uint64_t incarnation = 0;
    double sequence_s = 1;
    std::unique_ptr<Transport> transport;
    std::unique_ptr<GlobalState> state;
    std::unique_ptr<Member> member;  // null: down
    SimulatedWorkers workers;
    SimulatedDisk disk;  // outlives its starts
    double workers_ready_s = -1;
    double heartbeat_s = 0;
    double restart_s = -1;      // dead until then
    double frozen_s = -1;       // does nothing until then
    int64_t actions_left = -1;  // until it dies; -1: it does not
    bool is_ghost = false;      // an earlier start: hears only what it had before
    std::vector<Frame> heard_before;
    double ghost_ends_s = 0;
    bool has_left = false;
  };
  struct Fault {
    double at_s = 0;
    enum class Kind {
      kCrash,
      kGhost,
      kPartition,
      kCoordinator,
      kFreeze,
      kFreezeCoordinator,
      kStoreAway,
      kStoreCut,
      kPowerCut
    } kind;
  };
  struct Partition {
    std::string from, to;
    double end_s = 0, flap_s = 0;  // on and off so often; 0: steady
  };

  int64_t sum(int64_t (SimulatedCoordinator::*count)() const) const;
  SimulatedCoordinator& any_coordinator();

  // simulated_run.cpp: the world
  void plan_faults();
  void strike(const Fault& fault);
  void flap();
  bool can_spare(const Site& site) const;
  bool can_go_back() const;
  void cut_power();
  void check_end();
  std::string where() const;
  void complain(const std::string& what);
  // simulated_site.cpp: one site
  void start(Site& site);
  void crash(Site& site);
  void haunt(Site& site);
  void turn(Site& site);
  void hear(Site& site, const std::string& peer, const Frame& frame);
  void say(Site& site, SendMessage& send);
  void note(const Report& report);
  void carry_out(Site& site, MemberActions actions);
  void act(Site& site, MemberAction& action);
  void start_workers(Site& site, const StartWorkers& begin);
  void check_held(const Site& site);
  bool is_to_die(Site& site);
  void leave(Site& site, const Leave& leave);
  void train(Site& site);
  void leave_out(Site& site);
  void exchange_after_step(Site& site);
  void save_checkpoint(Site& site);
  void take_snapshot(Site& site, int64_t exchange);
  void take_merge(Site& site, const GiveMerged& merged);
  StepRange lane_of(const Site& site) const;
  double step_s(const Site& site) const;

  SimulatedRunOptions options_;
  ManualClock clock_;
  Rng rng_;
  LoopbackNetwork network_;
  FaultyCode faulty_;
  Truth truth_;
  SimulatedStore store_;
  std::vector<std::unique_ptr<SimulatedCoordinator>> coordinators_;
  std::vector<train::Fragment> fragments_;
  std::vector<int64_t> shares_;  // at the start
  std::vector<Site> sites_;
  std::vector<std::unique_ptr<Site>> ghosts_;
  std::vector<Fault> faults_;  // by time, latest first
  std::vector<Partition> partitions_;
  uint64_t num_starts_ = 0;
  int64_t num_restarts_ = 0, num_power_cuts_ = 0, num_lost_disks_ = 0, num_refused_ = 0;
  int64_t num_lies_ = 0, num_leaves_fetched_ = 0, num_leaves_kept_ = 0;
  int64_t num_left_out_ = 0, furthest_step_ = 0;  // steps; the latter was trained by any site
  std::set<std::string> finished_;                // sites; some died before they were released
  std::string struck_;                            // for a complaint: what failed when
  std::vector<int64_t> last_steps_;
  std::vector<std::string> last_hashes_;
};

}  // namespace pelago::sites
