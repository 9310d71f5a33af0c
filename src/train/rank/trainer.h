// One rank's part in training one site's model. Every rank holds the whole model and works on its
// share of the step's sequences; shares may differ, since chips do. What makes that exact: a rank
// back-propagates the SUM of its token losses, the sums are added over ranks in rank order, and the
// result is divided once by the step's tokens, so any split of a batch gives the same gradient.
//
// Weights live three times: a f32 master (Adam's steps are too small for bf16 to hold), the rounded
// copy in the chip's training dtype that the forward pass reads, and on disk. In f32 the first two
// are one tensor. All vectors are flat, in the order of parameter_specs().
//
// Every rank applies the same reduced gradient to its own master. Unlike chips may round the
// optimizer's arithmetic differently, so masters stay equal only up to rounding between the moments
// at which rank 0's is copied to all: at the start, at each checkpoint and at each merge. Doing it
// at each step would cost as much traffic again as the reduction.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "chips/collective.h"
#include "chips/device.h"
#include "chips/tensor.h"
#include "data/dataset.h"
#include "model/config.h"
#include "plan/job.h"
#include "plan/plan.h"
#include "train/checkpoint.h"
#include "train/messages.h"
#include "train/rank/samples.h"

namespace pelago::model {
class Parameters;
class Transformer;
}  // namespace pelago::model

namespace pelago::train {

struct TrainerOptions {
  model::ModelConfig model;
  plan::TrainConfig train;
  plan::SitePlan site;          // shares of the ranks
  int64_t batch_sequences = 0;  // all sites, a step: the run's sample counter moves by this
  int64_t sequence_length = 0;
  int64_t num_steps = 0;  // of the run, for the schedule of the learning rate
};
TrainerOptions trainer_options(const plan::JobConfig& job, const plan::Plan& plan, int site_idx);

class Trainer {
 public:
  /// device, collective and samples outlive the trainer. Throws Failure if samples hold less than
  /// one sequence; c10::Error if the device has no room.
  Trainer(TrainerOptions options,
          chips::Device& device,
          chips::Collective& collective,
          const TokenSource& samples);
  ~Trainer();

  /// flat: [N] f32, CPU. Adam starts anew.
  void load_weights(const Tensor& flat);
  /// flat, m, v: [N] f32, CPU; state: adam_steps, loss_scale and loss_scale_steps are taken.
  void load_state(const Tensor& flat, const Tensor& m, const Tensor& v, const TrainState& state);
  /// Writes the same three fields.
  void save_state(TrainState& state) const;

  /// The optimizer step after step_idx completed ones. All ranks call it together; the report is
  /// whole on each. Of a rank's times, update and waiting are those of the step before: a second
  /// meeting of the ranks, only to learn them, would cost more than they are worth.
  StepReport step(int64_t step_idx);
  /// Loss on the first sequences of the held-out split; the ranks share the work by their speed.
  /// token_bytes: bytes of text behind each token, 0 for special ones; [V].
  EvaluationReport evaluate(const TokenSource& heldout,
                            std::span<const int32_t> token_bytes,
                            int64_t completed_steps);

  /// Copies rank 0's master, moments and weights to all ranks.
  void align_ranks();
  /// Copies a fragment of the master to host memory. out: fragment.end - fragment.begin values.
  void copy_fragment(const Fragment& fragment, std::span<float> out) const;
  /// On rank 0: master = alpha * master + (1 - alpha) * global over the fragment; then all ranks
  /// take rank 0's. global is read on rank 0 only.
  void merge_fragment(const Fragment& fragment, std::span<const float> global, double alpha);

  const Tensor& master() const { return master_; }      // [N] f32 on the device
  const Tensor& first_moment() const { return m_; }     // [N] f32
  const Tensor& second_moment() const { return v_; }    // [N] f32
  const Tensor& gradient() const { return gradient_; }  // [N] f32, sum over the last step's tokens

 private:
  /// A run of the flat vector whose parameters all decay, or all do not.
  struct DecayRun {
    int64_t begin, end;
    bool decays;
  };
  struct Sums;  // what the ranks add up beside the gradient

  double loss_and_gradient(int64_t step_idx);
  std::vector<int64_t> windows_of_step(int64_t step_idx) const;
  bool agree_on_norm(double& norm, double loss_sum, int64_t tokens);
  StepReport apply_gradient(int64_t step_idx, const Sums& sums);
  void update(double lr, double grad_scale);
  void adapt_loss_scale(bool skipped);
  void refresh_weights(const Fragment& fragment);
  const plan::DevicePlan& own_share() const;

  TrainerOptions options_;
  chips::Device* device_;
  chips::Collective* collective_;
  const TokenSource* samples_;
  data::SampleOrder order_;
  Tensor master_, m_, v_, gradient_;  // [N] f32 on the device
  Tensor weights_;                    // [N] in the training dtype; master_ itself if that is f32
  std::unique_ptr<model::Parameters> parameters_;
  std::unique_ptr<model::Transformer> transformer_;
  std::vector<DecayRun> decay_runs_;
  int64_t adam_steps_ = 0;
  double loss_scale_;  // used by ranks whose dtype is fp16, kept equal on all
  int64_t loss_scale_steps_ = 0;
  RankReport previous_;  // update and waiting of the step before
};

}  // namespace pelago::train
