// The supervisor's side of a site: starts its workers, passes messages, and when a device is lost
// goes on with those that are left.
//
// A start of the site is: workers of the plan in use -> all ready -> training -> finished. What can
// come between, and what happens then:
//   a worker dies, or its device fails   all workers end, plan for what is left, start anew from
//   (its own last words, or its socket   the newest snapshot; the steps since then are repeated
//   hangs up), or answers no question    and their reports kept back
//   a device is back, or another cut of  workers are asked to pause: they store their state after
//   the model has become better          the step under way and leave; then start anew
//   a chip has become slower             new shares, taken at a step border; nobody restarts
//   the sites share the batch anew       the same, from a step that is told in advance
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>

#include "train/across/bridge_socket.h"
#include "train/health/hang_watch.h"
#include "train/health/pace_watch.h"
#include "train/process/control.h"
#include "train/process/shared_weights.h"
#include "train/process/spare_workers.h"
#include "train/process/worker_set.h"
#include "train/recovery/restart_point.h"
#include "train/recovery/return_watch.h"
#include "train/recovery/roster.h"
#include "train/saving/background_task.h"
#include "train/site_runner.h"

namespace pelago::train {

class Supervisor {
 public:
  explicit Supervisor(const SitePlace& place);
  ~Supervisor();

  void prepare();
  void start(const SiteStart& start, SiteEvents& events);
  void allow_training();
  void weights_are_here();
  bool poll(double timeout_s);
  void merged(int64_t exchange_idx);
  void take_shares(const BatchShares& shares);
  void others_at(int64_t step);
  void stop_at(int64_t completed_steps, bool with_checkpoint);
  int64_t next_quiet_step() const;
  std::vector<BridgeSocket> take_bridges() { return std::move(bridges_); }

  SharedWeights& shared() { return shared_; }
  const plan::Plan& own_plan() const { return own_plan_; }
  const plan::JobConfig& job() const { return job_; }
  const std::vector<Fragment>& fragments() const { return fragments_; }
  int64_t completed_steps() const { return completed_steps_; }

 private:
  /// Why the site starts anew, for the account once it goes on.
  struct Loss {
    std::string event;  // "recovered" or "rejoined"
    double begin_s = 0;
    int64_t from_step = 0;
    int64_t at_step = 0;
  };

  // supervisor.cpp
  void start_workers(const WorkerSetup& setup);
  void keep_spares();
  WorkerStart worker_start() const;
  void handle(size_t rank, const std::string& packet);
  void take_step(StepReport report);
  void leave_out(int64_t step);
  int64_t data_shift_at(int64_t step) const;
  void take_snapshot(int64_t exchange_idx);
  void check_ready();
  void begin_saving(int64_t step, const std::filesystem::path& dir);
  void take_saved();
  void tell_first(const std::string& type, const std::string& key, int64_t value);
  std::filesystem::path checkpoints() const { return place_.site_dir / "checkpoints"; }

  // losses.cpp
  void deal_with_losses();
  void look_for_hang();
  void look_for_returns();
  void watch_pace(const StepReport& report);
  std::vector<size_t> culprits();
  void recover(const std::vector<size_t>& lost, const std::string& why, bool computes_wrong);
  void restart(Loss loss);
  WorkerSetup restart_setup(int64_t& from_step);
  void pause_for(Roster next, const std::string& event, std::optional<size_t> place);
  void end_pause();
  void adopt(Roster next);
  void announce(const BatchShares& shares);
  void settle_shares(int64_t completed_steps);
  bool are_shares_due() const;
  void record(const std::string& event, const std::string& fields_json);
  std::string site_prefix() const;

  SitePlace place_;
  SiteStart start_;
  SiteEvents* events_ = nullptr;  // from the start on
  plan::JobConfig job_;
  plan::Plan own_plan_;
  ExchangeSchedule schedule_;
  std::vector<Fragment> fragments_;
  SharedWeights shared_;
  Roster roster_;
  WorkerSet workers_;
  SpareWorkers spares_;
  std::vector<BridgeSocket> bridges_;    // to the workers of a joint plan, until they are taken
  std::optional<HangWatch> hang_watch_;  // of this start, once all are ready
  std::optional<PaceWatch> pace_watch_;  // of this start
  ReturnWatch return_watch_;
  std::filesystem::path rendezvous_dir_;
  int num_starts_ = 0;
  int spares_start_ = 0;  // the last start for which there have been spares
  size_t num_ranks_ = 0;  // of the last start
  int plan_idx_ = 0;      // in use
  int num_plans_ = 0;     // written besides the run's own

  bool was_ready_ = false;  // once; it is told once
  bool may_train_ = false;
  bool has_weights_ = false;  // of a start from shared weights
  std::optional<StopRequest> stop_request_;
  ExchangeLog exchanges_;
  int64_t completed_steps_ = 0;  // the most ever
  std::set<int64_t> left_out_;   // of these, those that were not trained: steps, 1 is the first
  size_t num_left_out_told_ = 0;
  int64_t others_step_ = 0;  // that the other sites have completed, as far as was heard
  int64_t saved_step_ = -1;
  int64_t evaluated_step_ = -1;
  std::optional<Loss> loss_;             // until the next new step
  std::map<size_t, double> usual_pace_;  // by place: what PaceWatch has learnt
  std::optional<Roster> next_roster_;    // while pausing
  std::vector<BatchShares> shares_;      // of the batch, after the plan's
  size_t num_shares_taken_ = 0;          // of these, by the roster
  double pause_begin_s_ = 0;
  int num_vain_starts_ = 0;  // without a new step in between
  int64_t saving_step_ = -1;
  BackgroundTask saving_;  // last: it uses place_, job_ and events_
};

}  // namespace pelago::train
