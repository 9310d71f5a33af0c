// A worker's run from its first step to its last. All ranks of a site go through the same sequence,
// which is a function of the number of completed steps; only rank 0 hears the supervisor, and what
// it hears that the others must know goes to them as one byte at the start of each step.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "chips/collective.h"
#include "chips/device.h"
#include "plan/job.h"
#include "plan/plan.h"
#include "train/process/shared_weights.h"
#include "train/rank/control.h"
#include "train/rank/site_links.h"
#include "train/rank/trainer.h"
#include "train/site_runner.h"

namespace pelago::train {

/// Exchanges of this plan: none for a site alone.
ExchangeSchedule schedule_of(const plan::Plan& plan);

class RankRun {
 public:
  /// control outlives the run. Opens device and collective and loads weights. Throws Failure or
  /// c10::Error.
  RankRun(const WorkerOptions& options,
          const WorkerSetup& setup,
          SharedWeights shared,
          Control& control);

  /// Trains until the last step, or until it is asked to stop.
  void run();

 private:
  enum class Order : uint8_t { kGoOn, kStop, kStopWithCheckpoint };

  void load_weights(const WorkerSetup& setup);
  HostState next_snapshot();
  void wait_together(const std::function<bool()>& has_come);
  Order share_order();
  void train_step();
  void snapshot(int64_t exchange_idx);
  double merge(int64_t exchange_idx, double alpha);
  void take_last_merges();
  void evaluate();
  void save_checkpoint();
  std::string write_checkpoint(const std::filesystem::path& dir, const HostState& state);
  void warn(const std::string& message);
  const Fragment& fragment_of(int64_t exchange_idx) const;
  bool is_first_rank() const { return collective_->rank() == 0; }

  WorkerOptions options_;
  SharedWeights shared_;
  Control* control_;
  plan::JobConfig job_;
  plan::Plan plan_;
  ExchangeSchedule schedule_;
  std::vector<Fragment> fragments_;
  data::TokenStream train_stream_, heldout_stream_;
  StreamSource samples_, heldout_;
  std::vector<int32_t> token_bytes_;  // [V]
  std::unique_ptr<chips::Device> device_;
  std::unique_ptr<SiteLinks> links_;
  chips::Collective* collective_ = nullptr;  // of links_: for what is not training
  std::unique_ptr<Trainer> trainer_;         // last: it refers to those above
  TrainState state_;                         // step and tokens so far; identity of the run
  bool is_fresh_ = true;
  int num_snapshots_ = 0;
  int64_t saved_step_ = -1;      // of the last checkpoint
  int64_t evaluated_step_ = -1;  // of the last evaluation
};

}  // namespace pelago::train
