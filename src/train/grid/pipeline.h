// A rank's stage among the stages of its pipeline: microbatches go through it in 1F1B order, hidden
// states come from the stage before and gradients from the one behind, and travel while the device
// computes.
//
// Stages may be cut over unlike numbers of ranks: each rank sends every rank of the neighbouring
// stage those of its tokens which that one needs. What crosses a border has the narrower of the two
// chips' dtypes: 16 bits if either has; fp16 if either has no bf16, since it could not hold more.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "chips/collective.h"
#include "chips/courier.h"
#include "chips/device.h"
#include "model/parts/stage.h"
#include "plan/plan.h"
#include "train/rank/samples.h"

namespace pelago::train {

struct PipelineOptions {
  model::ModelConfig model;
  plan::SitePlan site;
  int rank = 0;
  std::vector<c10::ScalarType> dtypes;        // in which the site's ranks train
  std::vector<int> site_of_rank = {};         // empty: all in one
  int activation_bits = 32;                   // of what goes from site to site
  chips::Courier* courier = nullptr;          // outlives the pipeline; null for a single stage
  chips::Collective* tensor_group = nullptr;  // of the stage's ranks, outlives it; null: one rank
  std::atomic<uint64_t>* pulse = nullptr;     // counts microbatches as signs of life; may be null
  model::Tamper tamper = nullptr;             // for tests
};

/// Which windows of the source a microbatch has.
using Microbatches = std::vector<std::span<const int64_t>>;

struct PipelineResult {
  double loss_sum = 0;                   // of this rank's tokens, if it has the head
  double waited_s = 0;                   // for other stages
  double forward_s = 0, backward_s = 0;  // of the device; both 0 if it cannot tell
  double peak = 0;  // the largest magnitude of the residual stream; NaN if a value was
};

class Pipeline {
 public:
  /// device and parameters outlive the pipeline.
  Pipeline(const PipelineOptions& options, chips::Device& device, model::Parameters& parameters);

  /// How long the device has computed so far: by its own clock, or by the host's where the host is
  /// the device. Nothing where work is only given to it. For differences.
  std::optional<double> work_s() const;

  bool is_first() const { return stage_idx_ == 0; }
  bool is_last() const { return stage_idx_ + 1 == num_stages_; }
  /// Some stage trains in fp16, so that gradients need the loss to be scaled.
  bool needs_loss_scale() const { return needs_loss_scale_; }

  /// Forward and backward of all microbatches. Adds gradients, `loss_scale` times as large, to
  /// flat_gradient; on_done hears of each unit whose gradients are whole.
  PipelineResult train(const TokenSource& source,
                       int64_t sequence_length,
                       const Microbatches& microbatches,
                       double loss_scale,
                       Tensor& flat_gradient,
                       const model::Stage::OnUnitDone& on_done);
  /// Forward only.
  PipelineResult evaluate(const TokenSource& source,
                          int64_t sequence_length,
                          const Microbatches& microbatches);

 private:
  /// Rows [begin, end) of this rank's [N,D] that rank `rank` of a neighbouring stage has or needs.
  struct Share {
    int rank;
    int64_t begin, end;
  };
  enum Tag : uint32_t { kForward = 1, kBackward = 2 };

  std::vector<Share> shares_with(size_t stage_idx, int64_t num_rows) const;
  bool rounds_between(int other_rank) const;
  c10::ScalarType border_dtype(int other_rank) const;
  void expect(size_t from_stage, int64_t num_rows, Tag tag);
  Tensor take(size_t from_stage, int64_t num_rows, Tag tag);
  void send(const Tensor& rows, size_t to_stage, Tag tag);
  model::StageInput input_of(const TokenSource& source,
                             int64_t sequence_length,
                             std::span<const int64_t> windows);
  void give_sign() {
    if (options_.pulse != nullptr) ++*options_.pulse;
  }
  int64_t own_rows(int64_t sequence_length, std::span<const int64_t> windows) const;

  PipelineOptions options_;
  chips::Device* device_;
  model::Stage stage_;
  size_t pipeline_idx_ = 0, stage_idx_ = 0, num_stages_ = 0;
  int64_t tensor_idx_ = 0, tensor_count_ = 1;
  bool needs_loss_scale_ = false;
};

}  // namespace pelago::train
