// A run of sites in step in virtual time: the real protocol on both sides, the real order of what
// comes for workers, over lines that lose, delay and double, are cut one way or both, steadily or
// on and off; sites that die between any two actions, hang, are stopped and come back; disks that
// are slow and lose or tear what was not yet safe; coordinators that die or hang. Workers are
// replaced by arithmetic: a step mixes what every site gave to it into the state. Disks are lost;
// then a checkpoint travels by the real messages.
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
#include "sites/simulation/lockstep/lockstep_fetch.h"
#include "sites/simulation/lockstep/lockstep_options.h"
#include "sites/simulation/lockstep/lockstep_truth.h"
#include "sites/simulation/lockstep/simulated_lines.h"
#include "sites/simulation/simulated_coordinator.h"
#include "sites/simulation/site/simulated_disk.h"
#include "sites/transport/loopback.h"

namespace pelago::sites {

class LockstepRun {
 public:
  explicit LockstepRun(const LockstepRunOptions& options);
  /// Runs until the end, and once more to the last step. Returns what went wrong, or nothing.
  std::string run();

  const LockstepTruth& truth() const { return truth_; }
  int64_t num_restarts() const { return num_restarts_; }
  int64_t num_lines_lost() const { return lines_.num_given_up(); }
  int64_t num_fetched() const { return num_fetched_; }
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
    SimulatedDisk disk;                    // outlives its starts, as does the next
    std::map<int64_t, SavedInStep> saved;  // what a checkpoint has beside its step
    std::vector<CheckpointOffer> offered;  // by this start
    std::unique_ptr<FetchedInStep> fetch;  // while it fetches one
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
      kPowerCut,
      kLostDisk,
      kLostWorkers
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
  // lockstep_fetch.cpp: a checkpoint from another site
  std::vector<CheckpointOffer> safe_offers(Site& site);
  bool begin_fetch(Site& site, const StartWorkers& begin);
  bool hear_of_fetch(Site& site, const std::string& peer, const Message& message);
  void ask(Site& site, CheckpointFetcher::Requests requests);
  void go_on_fetching(Site& site);
  // lockstep_workers.cpp: what the workers of a site do
  void start_workers(Site& site, const StartWorkers& begin);
  void give(Site& site, int64_t step, bool is_order, uint64_t value);
  void take(Site& site, const RelayPart& part);
  void hear_lines(Site& site);
  std::string line_address(const Site& site) const;
  void train(Site& site);
  bool is_to_stop(Site& site);
  void save(Site& site);
  void note_saved(Site& site);
  void look_at_silence(const Site& site);
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
  int64_t num_fetched_ = 0;
  bool gave_up_ = false, was_stopped_ = false, any_finished_ = false;
  std::string ending_, struck_;
};

}  // namespace pelago::sites
