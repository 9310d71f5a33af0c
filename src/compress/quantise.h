// A model folder to the same model in few bits (docs/FILES.md, "Quantised models").
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "chips/tensor.h"
#include "model/quantisation.h"

namespace pelago::compress {

enum class Method { kRoundToNearest, kGptq };

struct QuantiseOptions {
  model::Quantisation format;
  Method method = Method::kRoundToNearest;
  double damping = 0.01;  // GPTQ: of the mean squared input (arXiv:2210.17323, section 3.3)
};

struct QuantiseReport {
  int64_t num_matrices = 0;
  double relative_error = 0;                  // ||W - W'|| / ||W|| over all matrices
  int64_t bytes_before = 0, bytes_after = 0;  // of the weights on disk
  double loss_before = 0, loss_after = 0;     // nat a token, if asked for
};

/// Random windows of a dataset's split, int64 [num_sequences, num_tokens]; fewer if it has fewer.
/// The same seed, the same windows. Throws Failure if the vocabulary is another one or the split
/// has no window.
Tensor read_windows(const std::filesystem::path& dataset,
                    const std::string& split,
                    int64_t vocab_size,
                    int64_t num_sequences,
                    int64_t num_tokens);

/// Writes the quantised model into `out`, which exists. calibration: int64 [N,T], for GPTQ;
/// evaluation: the same, for the losses; either may be undefined. progress: called with the blocks
/// done and all, may be empty. Throws Failure naming folder and tensor: quantised already, groups
/// that do not divide a matrix.
QuantiseReport quantise_folder(const std::filesystem::path& folder,
                               const std::filesystem::path& out,
                               const QuantiseOptions& options,
                               const Tensor& calibration,
                               const Tensor& evaluation,
                               const std::function<void(int64_t, int64_t)>& progress);

}  // namespace pelago::compress
