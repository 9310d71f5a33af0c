#include <algorithm>
#include <numbers>
#include <numeric>

#include "chips/torch.h"
#include "model/transformer.h"
#include "train/rank/trainer.h"

namespace pelago::train {

EvaluationReport Trainer::evaluate(const TokenSource& heldout,
                                   std::span<const int32_t> token_bytes,
                                   int64_t completed_steps) {
  const torch::NoGradGuard no_grad;
  // A split shorter than one sequence is one short window.
  const int64_t length =
      std::min(options_.sequence_length, std::max<int64_t>(heldout.num_tokens() - 1, 1));
  int64_t num_sequences = num_windows(heldout, length);
  const int64_t asked = options_.train.eval_sequences;
  if (asked > 0) num_sequences = std::min(num_sequences, asked);

  int64_t share_begin = 0;
  for (int rank = 0; rank < collective_->rank(); ++rank) {
    share_begin += options_.site.devices[static_cast<size_t>(rank)].sequences;
  }
  const int64_t whole = std::max<int64_t>(options_.site.batch_sequences, 1);
  const int64_t begin = num_sequences * share_begin / whole;
  const int64_t end = num_sequences * (share_begin + own_share().sequences) / whole;
  std::vector<int64_t> windows(static_cast<size_t>(end - begin));
  std::iota(windows.begin(), windows.end(), begin);

  std::vector<double> sums(3);  // nats, tokens, bytes
  const auto microbatch = static_cast<size_t>(std::max<int64_t>(own_share().microbatch, 1));
  for (size_t first = 0; first < windows.size(); first += microbatch) {
    const std::span<const int64_t> all(windows);
    const Batch batch =
        read_windows(heldout, length, all.subspan(first, std::min(microbatch, all.size() - first)));
    const Tensor loss = transformer_->loss_sum(batch.tokens.to(master_.device()),
                                               batch.targets.to(master_.device()));
    sums[0] += loss.item<double>();
    sums[1] += static_cast<double>(batch.targets.numel());
    const auto* targets = batch.targets.data_ptr<int64_t>();
    for (int64_t i = 0; i < batch.targets.numel(); ++i) {
      sums[2] += token_bytes[static_cast<size_t>(targets[i])];
    }
  }
  collective_->all_reduce_sum(std::span<double>(sums));
  return {.site = options_.site.name,
          .step = completed_steps,
          .loss = sums[0] / sums[1],
          .bits_per_byte = sums[0] / std::numbers::ln2 / sums[2],
          .tokens = static_cast<int64_t>(sums[1])};
}

}  // namespace pelago::train
