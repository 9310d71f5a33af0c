// One rank's part in training one site's model. A site is a grid: pipelines of stages, of unlike
// chips, each with its share of the step's sequences. What makes unequal shares exact: a rank
// back-propagates the SUM of its token losses, the sums are added over those who hold a block, in
// rank order, and the result is divided once by the step's tokens. So any split of a batch gives
// the same gradient.
//
// Every holder of a block applies the same reduced gradient to its own master weights. Unlike chips
// may round the optimizer's arithmetic differently, so masters stay equal only up to rounding
// between the moments at which all take the same copy from the host: at the start, at each
// checkpoint and at each merge. Doing it at each step would cost as much traffic again as the
// reduction. Where the optimizer is sliced (ZeRO-1), every master exists once.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "chips/collective.h"
#include "chips/courier.h"
#include "chips/device.h"
#include "chips/tensor.h"
#include "data/dataset.h"
#include "model/config.h"
#include "plan/job.h"
#include "plan/plan.h"
#include "train/checkpoint.h"
#include "train/grid/pipeline.h"
#include "train/grid/reducer.h"
#include "train/grid/shards.h"
#include "train/health/audit.h"
#include "train/health/plausibility.h"
#include "train/messages.h"
#include "train/rank/loss_scale.h"
#include "train/rank/samples.h"
#include "train/rank/step_sums.h"

namespace pelago::model {
class Parameters;
}  // namespace pelago::model

namespace pelago::train {

/// For tests of what notices faults: each sees values on their way and may change them.
struct StepTamper {
  model::Tamper blocks = nullptr;                                // activations and their gradients
  std::function<void(size_t bucket_idx, Tensor&)> reduced = {};  // before they are measured
  std::function<void(size_t bucket_idx, Tensor& m, Tensor& v)> moments = {};  // before the update
};

struct TrainerOptions {
  model::ModelConfig model;
  plan::TrainConfig train;
  plan::SitePlan site;          // pipelines of the ranks
  int64_t batch_sequences = 0;  // all sites, a step: the run's sample counter moves by this
  int64_t sequence_length = 0;
  int64_t num_steps = 0;               // of the run, for the schedule of the learning rate
  int64_t data_shift = 0;              // added to a step to find its samples
  std::vector<int> site_of_rank = {};  // ranks of one site share a host's memory; empty: all do
  int activation_bits = 32;            // of hidden states and their gradients from site to site
  StepTamper tamper = {};
};
TrainerOptions trainer_options(const plan::JobConfig& job, const plan::Plan& plan, int site_idx);

/// A rank's ways to the others. All outlive the trainer; each is used by one thread.
struct RankLinks {
  chips::Collective* control = nullptr;    // small things, and tensor parallelism
  chips::Collective* reduction = nullptr;  // gradients and sliced weights
  chips::Courier* courier = nullptr;       // between stages; null if no pipeline has several
  std::atomic<uint64_t>* pulse = nullptr;  // counts signs of life; null: nobody looks
};

class Trainer {
 public:
  /// device and samples outlive the trainer. All ranks construct one together. Throws Failure if
  /// samples hold less than one sequence; c10::Error if the device has no room.
  Trainer(TrainerOptions options,
          chips::Device& device,
          const RankLinks& links,
          const TokenSource& samples);
  ~Trainer();

  /// Takes this rank's part of the whole model's state; without moments Adam starts anew. Of
  /// `counters`, adam_steps, loss_scale and loss_scale_steps are taken.
  void load(const HostState& state, const TrainState& counters);
  /// Writes the same three fields.
  void save_counters(TrainState& counters) const;
  /// Writes what this rank keeps for others; all ranks together write everything once.
  void store(const HostState& state, const Fragment& range) const;
  /// Begins to store everything while the next steps compute: from a copy on the device where there
  /// is room for one, else it is done before the next step changes anything. After
  /// finish_storing() on_done was called, on a thread of the trainer.
  void store_behind(const HostState& state, std::function<void()> on_done);
  void finish_storing();
  /// Time that steps lost waiting for store_behind().
  double storing_s() const { return storing_s_; }

  /// The same stages with other shares of the batch, from the next step on. All ranks together.
  void take_shares(const plan::SitePlan& site);
  /// From the next step on; all ranks together.
  void set_data_shift(int64_t shift) { options_.data_shift = shift; }

  /// The optimizer step after step_idx completed ones. All ranks call it together; the report is
  /// whole on each. Of a rank's times, update and waiting are those of the step before: a second
  /// meeting of the ranks, only to learn them, would cost more than they are worth.
  StepReport step(int64_t step_idx);
  /// Loss on the first sequences of the held-out split; the pipelines share the work by their
  /// speed. token_bytes: bytes of text behind each token, 0 for special ones; [V].
  EvaluationReport evaluate(const TokenSource& heldout,
                            std::span<const int32_t> token_bytes,
                            int64_t completed_steps);

  /// What each pipeline makes of one and the same microbatch; changes nothing. All ranks together.
  std::vector<AuditSums> audit(int64_t step_idx);
  bool has_16_bits() const;  // some rank trains in bf16 or fp16

  /// Whether unlike chips each keep a copy of the same master: their bits may differ by rounding.
  bool may_differ() const;
  /// Whether all copies of each master and moment have the same bits now. All ranks together. False
  /// also if a chip cannot tell.
  bool copies_agree();
  /// All ranks take the same bits of weights and moments: they write them to `scratch`, memory that
  /// all ranks see, and read back what others wrote.
  void align_ranks(const HostState& scratch);
  /// master = keep * master + take * given over the range, on all ranks alike, through
  /// scratch.master. given: f32 [N].
  void merge(const Fragment& range,
             std::span<const float> given,
             const MergeFactors& factors,
             const HostState& scratch);

  /// For tests: the sum over the last step's tokens, this rank's slices of it, to f32 [N].
  void store_gradient(std::span<float> out) const;
  int64_t num_values() const { return shards_->weights().numel(); }  // that this rank holds

 private:
  Microbatches microbatches_of(std::span<const int64_t> windows) const;
  std::vector<int64_t> windows_of_step(int64_t step_idx) const;
  const plan::PipelinePlan& own_pipeline() const;
  int64_t own_tokens() const;
  chips::Collective& group_of(const Bucket& bucket);
  chips::Collective::Slice written_slice(const Bucket& bucket) const;
  void open_groups(const std::vector<std::vector<int>>& groups);
  void reduce(size_t bucket_idx, double loss_scale);
  void gather_weights();
  void give_sign() {
    if (links_.pulse != nullptr) ++*links_.pulse;
  }
  double compute(int64_t step_idx, RankReport& own);
  StepReport apply_gradient(int64_t step_idx, const StepSums& sums);

  TrainerOptions options_;
  chips::Device* device_;
  RankLinks links_;
  const TokenSource* samples_;
  data::SampleOrder order_;
  plan::Place place_;
  std::vector<c10::ScalarType> dtypes_;  // of the ranks
  std::vector<std::vector<int>> group_ranks_;
  std::vector<std::unique_ptr<chips::Collective>> groups_;  // by group_ranks_; null: not in it
  std::unique_ptr<chips::Collective> tensor_group_;         // null: a stage of one rank
  std::unique_ptr<Shards> shards_;
  std::unique_ptr<model::Parameters> parameters_;
  std::unique_ptr<Pipeline> pipeline_;
  size_t num_reduced_ = 0;  // buckets of this step given to the reducer
  int64_t adam_steps_ = 0;
  LossScale loss_scale_;
  GradientWatch gradient_watch_;
  bool has_room_for_copies();
  double storing_s_ = 0;
  double gathering_s_ = 0;              // of the last step: sliced weights
  bool storing_reads_masters_ = false;  // the storer: so nobody may change them
  int64_t copies_bytes_ = 0;            // most that copies on the device ever took
  RankReport previous_;                 // update and waiting of the step before
  Reducer storer_;  // writes snapshots; last, as the next: their threads use the members above
  Reducer reducer_;
};

}  // namespace pelago::train
