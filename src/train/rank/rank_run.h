// A worker's run from its first step to its last. All ranks of a site go through the same sequence,
// which is a function of the number of completed steps; only rank 0 hears the supervisor, and what
// it hears that the others must know goes to them as one byte at the start of each step.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "chips/collective.h"
#include "chips/device.h"
#include "plan/job.h"
#include "plan/plan.h"
#include "train/health/device_health.h"
#include "train/process/control.h"
#include "train/process/shared_weights.h"
#include "train/rank/site_links.h"
#include "train/rank/trainer.h"
#include "train/recovery/snapshots.h"
#include "train/saving/checkpoint_writer.h"
#include "train/site_runner.h"

namespace pelago::train {

/// Exchanges of this plan: none for a site alone.
ExchangeSchedule schedule_of(const plan::Plan& plan);

class RankRun {
 public:
  /// control outlives the run. Opens the device, unless it is open, and the collective, and loads
  /// weights. Throws as open_examined() does.
  RankRun(const WorkerOptions& options,
          const WorkerSetup& setup,
          SharedWeights shared,
          std::optional<OpenDevice> opened,
          Control& control);
  ~RankRun();

  /// Trains until the last step, or until it is asked to stop.
  void run();

 private:
  enum class Order : uint8_t { kGoOn, kStop, kStopWithCheckpoint, kPause };
  /// What rank 0 tells the others before each step.
  struct Orders {
    Order order = Order::kGoOn;
    bool begins_snapshot = false;
    bool leaves_out = false;  // the next step
    int32_t plan_idx = 0;     // whose shares are to be taken; 0: none
  };

  void load_weights(const WorkerSetup& setup);
  void wait_together(const std::function<bool()>& has_come);
  Orders share_orders();
  void carry_out(const Orders& orders);
  void finish(Order order, bool was_finished);
  void leave();
  void store_at_once();
  void train_step();
  void leave_out_step();
  bool leaves_out_next() const;
  double exchange_after_step();
  void snapshot(int64_t exchange_idx);
  double merge(int64_t exchange_idx, const MergeFactors& factors);
  void take_last_merges();
  void audit();
  void evaluate();
  enum class Saving : uint8_t { kBehind, kAtOnce };
  void save_checkpoint(Saving how);
  void finish_saving();
  void watch_saving();
  bool saves_soon() const;
  void take_parts_of_others(const HostState& state);
  const Fragment& fragment_of(int64_t exchange_idx) const;
  /// Of all ranks: it hears the supervisor, and decides.
  bool is_first_rank() const { return collective_->rank() == 0; }
  /// Of its site's ranks: it tells the site's supervisor.
  bool speaks_for_site() const { return options_.rank == 0; }
  StepReport own_part(StepReport report) const;
  bool is_joint() const { return bridge_ != nullptr; }

  WorkerOptions options_;
  WorkerSetup setup_;
  SharedWeights shared_;
  Control* control_;
  plan::JobConfig job_;
  plan::Plan plan_;
  ExchangeSchedule schedule_;
  std::vector<Fragment> fragments_;
  data::TokenStream train_stream_, heldout_stream_;
  StreamSource samples_, heldout_;
  std::vector<int32_t> token_bytes_;  // [V]
  OpenDevice opened_;
  chips::Device* device_ = nullptr;  // of opened_
  std::unique_ptr<Bridge> bridge_;  // to other sites' ranks, if they train in step; else null
  std::unique_ptr<SiteLinks> links_;
  chips::Collective* collective_ = nullptr;  // of links_: for what is not training
  std::unique_ptr<Trainer> trainer_;  // it refers to those above
  std::unique_ptr<Snapshots> snapshots_;
  TrainState state_;  // step and tokens so far; identity of the run
  bool is_fresh_ = true;
  int num_skipped_ = 0;          // steps in a row
  int64_t saved_step_ = -1;      // of the last checkpoint
  int64_t evaluated_step_ = -1;  // of the last evaluation
  int64_t copy_steps_ = 4;       // steps that the last copy of a checkpoint took; 4: not known
  double copying_begun_s_ = 0;   // what the copies of snapshots had cost when the last one began
  CheckpointWriter saving_;      // rank 0's, from a slot that stays as it is; last
};

}  // namespace pelago::train
