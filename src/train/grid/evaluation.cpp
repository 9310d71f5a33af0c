#include <algorithm>
#include <numbers>
#include <numeric>

#include "chips/torch.h"
#include "train/rank/trainer.h"

namespace pelago::train {

namespace {

/// The longest window that every stage can cut evenly over its ranks.
int64_t divisible(int64_t length, const plan::SitePlan& site) {
  int64_t width = 1;
  for (const plan::PipelinePlan& pipeline : site.pipelines) {
    for (const plan::StagePlan& stage : pipeline.stages) {
      width = std::lcm(width, static_cast<int64_t>(stage.ranks.size()));
    }
  }
  return std::max(length / width, int64_t{1}) * width;
}

}  // namespace

EvaluationReport Trainer::evaluate(const TokenSource& heldout,
                                   std::span<const int32_t> token_bytes,
                                   int64_t completed_steps) {
  // A split shorter than one sequence is one short window.
  const int64_t length =
      divisible(std::min(options_.sequence_length, std::max<int64_t>(heldout.num_tokens() - 1, 1)),
                options_.site);
  int64_t num_sequences = num_windows(heldout, length);
  const int64_t asked = options_.train.eval_sequences;
  if (asked > 0) num_sequences = std::min(num_sequences, asked);

  int64_t share_begin = 0;
  for (size_t i = 0; i < place_.pipeline_idx; ++i) {
    share_begin += options_.site.pipelines[i].sequences;
  }
  const int64_t whole = std::max<int64_t>(options_.site.batch_sequences, 1);
  const int64_t begin = num_sequences * share_begin / whole;
  const int64_t end = num_sequences * (share_begin + own_pipeline().sequences) / whole;
  std::vector<int64_t> windows(static_cast<size_t>(end - begin));
  std::iota(windows.begin(), windows.end(), begin);

  std::vector<double> sums(3);  // nats, tokens, bytes
  sums[0] = pipeline_->evaluate(heldout, length, microbatches_of(windows)).loss_sum;
  // One rank of a pipeline counts its tokens.
  if (pipeline_->is_first() && place_.tensor_idx == 0) {
    for (const int64_t window : windows) {
      const Batch batch = read_windows(heldout, length, std::span(&window, 1));
      const auto* targets = batch.targets.data_ptr<int64_t>();
      sums[1] += static_cast<double>(length);
      for (int64_t i = 0; i < length; ++i) {
        sums[2] += token_bytes[static_cast<size_t>(targets[i])];
      }
    }
  }
  links_.control->all_reduce_sum(std::span<double>(sums));
  return {.site = options_.site.name,
          .step = completed_steps,
          .loss = sums[0] / sums[1],
          .bits_per_byte = sums[0] / std::numbers::ln2 / sums[2],
          .tokens = static_cast<int64_t>(sums[1])};
}

}  // namespace pelago::train
