// The trainer's part in an audit: one microbatch through every pipeline, measured, applied nowhere.
#include <algorithm>
#include <cmath>

#include "chips/kernels.h"
#include "chips/torch.h"
#include "model/parameters.h"
#include "train/rank/trainer.h"

namespace pelago::train {

std::vector<AuditSums> Trainer::audit(int64_t step_idx) {
  const std::vector<plan::PipelinePlan>& pipelines = options_.site.pipelines;
  int64_t num_sequences = own_pipeline().microbatch;
  for (const plan::PipelinePlan& pipeline : pipelines) {
    num_sequences = std::min(num_sequences, std::max<int64_t>(pipeline.microbatch, 1));
  }
  std::vector<int64_t> windows;
  for (int64_t i = 0; i < num_sequences; ++i) {
    windows.push_back(
        order_.sequence_of(step_idx * options_.batch_sequences + options_.site.first_sequence + i));
  }
  finish_storing();
  shards_->clear_gradients();
  const double scale = pipeline_->needs_loss_scale() ? loss_scale_.value : 1.0;
  const Microbatches microbatch{windows};
  const PipelineResult result = pipeline_->train(
      *samples_, options_.sequence_length, microbatch, scale, shards_->gradient(), [](int64_t) {});
  const auto num_blocks = static_cast<size_t>(options_.model.num_hidden_layers);
  const size_t stride = 1 + 2 * num_blocks;
  std::vector<double> sums(pipelines.size() * stride);
  double* own = sums.data() + place_.pipeline_idx * stride;
  own[0] = result.loss_sum;
  // Matrices alone: with tensor parallelism a norm's gradient is spread over the stage's ranks in
  // another way than its neighbours'.
  for (const model::PartSpec& spec : parameters_->specs()) {
    if (spec.block_idx < 0 || spec.local.shape.size() < 2) continue;
    const auto block_idx = static_cast<size_t>(spec.block_idx);
    const Tensor gradient =
        shards_->gradient().narrow(0, spec.local_begin, spec.local.num_values());
    own[1 + block_idx] += chips::sum_of_squares(gradient);
    own[1 + num_blocks + block_idx] += gradient.sum().item<double>();
  }
  shards_->clear_gradients();
  links_.control->all_reduce_sum(std::span<double>(sums));

  const auto tokens = static_cast<double>(num_sequences * options_.sequence_length);
  std::vector<AuditSums> all(pipelines.size());
  for (size_t i = 0; i < all.size(); ++i) {
    const double* values = sums.data() + i * stride;
    all[i].loss = values[0] / tokens;
    for (size_t k = 1; k <= num_blocks; ++k) {
      all[i].block_norms.push_back(std::sqrt(values[k]) / scale / tokens);
      all[i].block_sums.push_back(values[k + num_blocks] / scale / tokens);
    }
  }
  return all;
}

bool Trainer::has_16_bits() const {
  return std::any_of(
      dtypes_.begin(), dtypes_.end(), [](auto dtype) { return dtype != torch::kFloat32; });
}

}  // namespace pelago::train
