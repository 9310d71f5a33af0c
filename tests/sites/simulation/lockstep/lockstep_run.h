// A run of sites in step in virtual time: the real protocol on both sides, the real order of what
// comes for workers, over lines that lose, delay and double, are cut one way or both, steadily or
// on and off; sites that die between any two actions, hang, are stopped and come back; disks that
// are slow and lose or tear what was not yet safe; coordinators that die or hang. Workers are
// replaced by arithmetic: a step mixes what every site gave to it into the state.
//
// When the run has ended, stopped or been given up, all is started again on a good network and
// asked to resume: it must come to the last step, with the results it had.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "sites/across/relay_order.h"
#include "sites/protocol/member.h"
#include "sites/simulation/faulty_code.h"
#include "sites/simulation/lockstep/lockstep_truth.h"
#include "sites/simulation/lockstep/simulated_lines.h"
#include "sites/simulation/simulated_coordinator.h"
#include "sites/simulation/simulated_disk.h"
#include "sites/transport/loopback.h"

namespace pelago::sites {

struct LockstepBug;

struct LockstepRunOptions {
  int64_t num_sites = 2;
  int64_t num_steps = 24;
  int64_t checkpoint_every_steps = 5;
  int64_t num_crashes = 0;
  int64_t num_long_absences = 0;  // crashes after which the site is away for longer than is borne
  int64_t num_freezes = 0;
  int64_t num_partitions = 0;
  int64_t num_coordinator_crashes = 0;
  int64_t num_coordinators = 1;  // more than one: they share a store
  int64_t num_store_outages = 0;
  bool has_frozen_coordinator = false;
  bool has_power_cut = false;  // everything dies at once
  double restart_s = 2;        // until a crashed site is back
  double site_disk_s = 0;      // until a checkpoint is safe
  double disk_s = 0;           // the coordinator's disk, or the way to the store
  double stop_after_s = 0;     // 0: never
  bool is_stopped_by_site = false;
  bool has_fixed_ports = false;  // a site is found where its last start was
  double faults_until_s = 25;
  double limit_s = 400;  // of virtual time: longer is no progress
  LoopbackOptions network = {};
  const LockstepBug* bug = nullptr;  // outlives the run
};

/// Draws everything that can go wrong from the seed.
LockstepRunOptions any_lockstep_run(uint64_t seed);

/// What faulty code does differently.
struct FaultyLockstep {
  FaultyCode code;
  bool takes_frames_of_any_start = false;
  bool counts_frames_on = false;         // over all starts
  bool offers_what_is_not_safe = false;  // checkpoints still being written
  bool stops_alone = false;              // every site by itself, when it hears of the stop
  bool keeps_workers = false;            // a site that is told to return goes on where it was
  bool counts_tokens_on = false;         // those of steps that are repeated, too
};

struct LockstepBug {
  std::string_view name;  // what the code then does wrong
  std::function<void(FaultyLockstep&)> plant;
  std::function<void(LockstepRunOptions&)> provoke = {};
};
const std::vector<LockstepBug>& lockstep_bugs();

class LockstepRun {
 public:
  explicit LockstepRun(const LockstepRunOptions& options);
  /// Runs until the end, and once more to the last step. Returns what went wrong, or nothing.
  std::string run();

  const LockstepTruth& truth() const { return truth_; }
  int64_t num_restarts() const { return num_restarts_; }
  int64_t num_lines_lost() const { return lines_.num_given_up(); }
  int64_t num_refused() const;
  bool was_given_up() const { return gave_up_; }
  bool was_stopped() const { return was_stopped_; }
  double virtual_s() const { return clock_.now_s(); }
  uint64_t trace() const;

 private:
  struct Workers {
    int64_t start_number = -1;
    int64_t step = 0, saved_step = -1, tokens = 0;
    uint64_t hash = 0;
    std::optional<double> ready_s, computed_s, saved_s;  // when each of these is done
    double heard_s = 0;                                  // when something last came from another
    std::map<int64_t, std::map<std::string, uint64_t>> parts;  // by step and site
    std::map<int64_t, bool> orders;                            // by step: whether to stop
    std::map<std::string, uint64_t> sent;                      // sequences
    std::optional<int64_t> stop_step;
    bool trains = false, stops = false, has_finished = false;
  };
  struct Saved {
    int64_t tokens = 0;
    uint64_t hash = 0;
  };
  struct Site {
    std::string name;
    size_t idx = 0;
    uint64_t incarnation = 0;
    double step_s = 0.4;
    std::unique_ptr<Transport> transport;
    std::unique_ptr<GlobalState> state;
    std::unique_ptr<Member> member;  // null: down
    RelayOrder order;
    std::map<std::string, std::string> peers;  // their addresses
    Workers workers;
    SimulatedDisk disk;              // outlives its starts, as does the next
    std::map<int64_t, Saved> saved;  // what a checkpoint has beside its step
    double heartbeat_s = 0, restart_s = -1, frozen_s = -1;
    int64_t actions_left = -1;  // until it dies; -1: it does not
    bool is_asked_to_stop = false, has_left = false;
  };
  struct Fault {
    double at_s = 0;
    enum class Kind {
      kCrash,
      kAbsence,
      kFreeze,
      kPartition,
      kCoordinator,
      kFreezeCoordinator,
      kStoreAway,
      kPowerCut
    } kind;
  };
  struct Partition {
    std::string from, to;
    double end_s = 0;
    double flap_s = 0;  // on and off so often; 0: steady
  };

  // lockstep_run.cpp: the world
  void plan_faults();
  void strike(const Fault& fault);
  void flap();
  void disturb_until(double until_s) { disturbed_s_ = std::max(disturbed_s_, until_s); }
  void ask_stop();
  void run_once();
  void end_failed(const std::string& why);
  void resume();
  bool all_have_left() const;
  const RoundMachine* leading() const;
  std::string where() const;
  void complain(const std::string& what);
  // lockstep_site.cpp: one site
  void start(Site& site);
  void crash(Site& site, double restart_s);
  void turn(Site& site);
  void hear(Site& site, const std::string& peer, const Frame& frame);
  void carry_out(Site& site, MemberActions actions);
  void act(Site& site, MemberAction& action);
  void leave(Site& site, const Leave& leave);
  void fail_workers(Site& site, const std::string& why);
  // lockstep_workers.cpp: what the workers of a site do
  void start_workers(Site& site, const StartWorkers& begin);
  void give(Site& site, int64_t step, bool is_order, uint64_t value);
  void take(Site& site, const RelayPart& part);
  void hear_lines(Site& site);
  std::string line_address(const Site& site) const;
  void train(Site& site);
  bool is_to_stop(Site& site);
  void save(Site& site);
  void finish_step(Site& site);

  LockstepRunOptions options_;
  ManualClock clock_;
  Rng rng_;
  LoopbackNetwork network_;
  SimulatedLines lines_;
  FaultyLockstep faulty_;
  train::ExchangeSchedule schedule_;
  LockstepTruth truth_;
  SimulatedStore store_;
  std::vector<std::unique_ptr<SimulatedCoordinator>> coordinators_;
  std::vector<Site> sites_;
  std::vector<Fault> faults_;  // by time, latest first
  std::vector<Partition> partitions_;
  uint64_t num_starts_ = 0;
  int64_t num_restarts_ = 0;
  double disturbed_s_ = 0;  // until when faults last
  bool gave_up_ = false, was_stopped_ = false, any_finished_ = false;
  std::string ending_, struck_;
};

}  // namespace pelago::sites
