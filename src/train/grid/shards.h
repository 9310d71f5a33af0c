// The state of a rank's parameters: the weights that its chip computes with, and for each bucket
// the part of the optimizer's state that this rank keeps. That is all of the bucket, or with ZeRO-1
// (arXiv:1910.02054) the rank's slice of it; the group then gathers the weights after each update.
//
// Weights live three times: a f32 master (Adam's steps are too small for bf16 to hold), the rounded
// copy in the chip's training dtype that the forward pass reads, and on disk. Where a rank keeps
// the masters of a whole bucket and trains in f32, the first two are one tensor.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "chips/collective.h"
#include "chips/device.h"
#include "chips/kernels.h"
#include "chips/tensor.h"
#include "model/config.h"
#include "plan/job.h"
#include "train/grid/buckets.h"
#include "train/messages.h"
#include "train/process/host_state.h"

namespace pelago::train {

/// How a merge makes new local weights: keep * local + take * what the agent gives.
struct MergeFactors {
  double keep = 0;
  double take = 1;
};

struct ShardOptions {
  c10::ScalarType weights_dtype;
  bool slices_optimizer = false;
};

class Shards {
 public:
  /// own_slices[i]: what this rank keeps of buckets[i] if the optimizer is sliced, and what it
  /// writes of it for others in any case. num_values: of the rank's flat vector.
  Shards(std::vector<Bucket> buckets,
         std::vector<chips::Collective::Slice> own_slices,
         int64_t num_values,
         chips::Device& device,
         const ShardOptions& options);

  const std::vector<Bucket>& buckets() const { return buckets_; }
  Tensor& weights() { return weights_; }    // [n] in the training dtype, the rank's flat vector
  Tensor& gradient() { return gradient_; }  // [n] f32, sums over microbatches

  /// Takes the rank's part; Adam's moments become 0 where none are given.
  void read(const HostState& state, const Fragment& range);
  /// Takes what other ranks write, and nothing else.
  void read_others(const HostState& state);
  /// A hash of masters and moments that this rank keeps of a bucket: equal bits, equal hashes.
  uint64_t digest(size_t bucket_idx) const;
  /// Takes weights alone. master: f32 [N].
  void read_weights(std::span<const float> master, const Fragment& range);
  /// Writes own_slices of the range.
  void write(const HostState& state, const Fragment& range) const;
  /// The same of everything, on a thread of its own, as it is at the mark; nobody changes masters
  /// or moments meanwhile.
  void write_behind(const HostState& state,
                    chips::Device& device,
                    const chips::WorkMark& after) const;

  /// A copy of own_slices of masters and moments on the device.
  struct Copies;
  std::shared_ptr<const Copies> copy_own() const;
  /// What copy_own() takes on the device.
  int64_t copy_bytes() const;
  /// As write_behind, of a copy: what is changed meanwhile does not matter.
  void write_copies(const Copies& copies,
                    const HostState& state,
                    chips::Device& device,
                    const chips::WorkMark& after) const;
  /// Writes own_slices of the reduced gradients.
  void write_gradient(std::span<float> out) const;
  /// own_slices of the range: out = keep * master + take * given, on the host, so that unlike chips
  /// round alike. out and given: f32 [N].
  void write_merged(std::span<float> out,
                    std::span<const float> given,
                    const MergeFactors& factors,
                    const Fragment& range) const;

  /// Reduced gradients of a bucket: [num_values], a view of gradient() or kept here until update().
  Tensor& bucket_gradient(size_t bucket_idx) { return gradients_[bucket_idx]; }
  /// Begins a step: gradients are 0.
  void clear_gradients();
  /// Collects a bucket's gradient from the flat vector if it lies scattered there.
  void collect_gradient(size_t bucket_idx);
  /// Sum of squares of the reduced gradients that this rank applies, each as much as makes it count
  /// once over all ranks. So a value that is wrong on one rank alone shows in the sum as well.
  double sum_of_squares() const;

  /// For tests: the moments that this rank keeps of a bucket.
  Tensor& m(size_t bucket_idx) { return kept_[bucket_idx].m; }
  Tensor& v(size_t bucket_idx) { return kept_[bucket_idx].v; }

  /// One step of what this rank keeps: AdamW, or Muon for the matrices of blocks. step: 1 for the
  /// first.
  void update(const plan::TrainConfig& train, int64_t step, double lr, double grad_scale);
  /// After update(): all of a bucket's weights from those who keep a slice of it. Call it for every
  /// bucket, in order. in_f32: masters travel, since the group's chips train in unlike dtypes.
  void gather_weights(size_t bucket_idx, chips::Collective& group, bool in_f32);

 private:
  struct Kept {
    int64_t begin = 0, end = 0;  // in the bucket
    Tensor master, m, v;         // [end - begin] f32 on the device
    Tensor weights;  // [num_values] where the bucket's weights are made: a view or apart
  };
  /// What is done with a piece once it is on the host, and what brings it there, now or later.
  using Take = std::function<void(const Tensor& host)>;
  using ToHost = std::function<void(const Tensor& piece, Take take)>;
  void write_own(const std::vector<Kept>& from,
                 const HostState& state,
                 const Fragment& range,
                 const ToHost& to_host) const;
  void update_matrix(size_t bucket_idx,
                     const UpdateRun& run,
                     const plan::TrainConfig& train,
                     chips::MuonOptions options);
  void take_weights(size_t bucket_idx, const RunFilter& filter, std::span<const float> master);
  void take_kept(size_t bucket_idx, RunFilter filter, std::span<const float> from, Tensor& to);

  std::vector<Bucket> buckets_;
  std::vector<chips::Collective::Slice> own_slices_;
  ShardOptions options_;
  Tensor weights_, gradient_;      // [n]
  std::vector<Tensor> gradients_;  // by bucket
  std::vector<Kept> kept_;         // by bucket
};

}  // namespace pelago::train
