#include "train/rank/samples.h"

#include <algorithm>

#include "base/error.h"
#include "chips/torch.h"

namespace pelago::train {

void MemorySource::read(int64_t begin, std::span<int64_t> out) const {
  PELAGO_ASSERT(begin >= 0 && begin + static_cast<int64_t>(out.size()) <= num_tokens(),
                "windows are cut inside the source");
  std::copy_n(tokens_.begin() + begin, out.size(), out.begin());
}

int64_t num_windows(const TokenSource& source, int64_t sequence_length) {
  return std::max<int64_t>(source.num_tokens() - 1, 0) / sequence_length;
}

Batch read_windows(const TokenSource& source,
                   int64_t sequence_length,
                   std::span<const int64_t> windows) {
  const auto num_sequences = static_cast<int64_t>(windows.size());
  Batch batch{torch::empty({num_sequences, sequence_length}, torch::kInt64),
              torch::empty({num_sequences, sequence_length}, torch::kInt64)};
  auto* tokens = batch.tokens.data_ptr<int64_t>();
  auto* targets = batch.targets.data_ptr<int64_t>();
  std::vector<int64_t> window(static_cast<size_t>(sequence_length) + 1);
  for (const int64_t window_idx : windows) {
    source.read(window_idx * sequence_length, window);
    tokens = std::copy_n(window.begin(), sequence_length, tokens);
    targets = std::copy_n(window.begin() + 1, sequence_length, targets);
  }
  return batch;
}

}  // namespace pelago::train
