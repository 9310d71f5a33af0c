// The part of a model that one device holds: a run of blocks, the embedding in front of the first
// block, the final norm and the head behind the last, and with tensor parallelism one slice of each
// matrix. A device keeps its part as one flat vector of its own, in the order of parameter_specs();
// here it says which places of the model's flat vector these are. Arithmetic only, no torch.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "model/config.h"

namespace pelago::model {

struct ModelPart {
  int64_t first_block = 0;
  int64_t last_block = 0;  // one past
  int64_t num_blocks = 0;  // of the whole model
  int tensor_idx = 0;
  int tensor_count = 1;
  bool has_embedding() const { return first_block == 0; }
  bool has_head() const { return last_block == num_blocks; }
  bool operator==(const ModelPart&) const = default;
};
ModelPart whole_model(const ModelConfig& config);

/// How tensor parallelism cuts a parameter: q, k, v, gate and up by rows (output features), the
/// attention output and down by columns, everything else not at all.
enum class TensorCut { kNone, kRows, kColumns };

/// One parameter as a part holds it.
struct PartSpec {
  ParameterSpec local;     // name; shape of what is held
  size_t spec_idx = 0;     // in parameter_specs()
  int64_t block_idx = -1;  // of the model; -1: embedding, final norm or head
  TensorCut cut = TensorCut::kNone;
  int64_t local_begin = 0;   // in the part's flat vector
  int64_t global_begin = 0;  // of the first value held, in the model's flat vector
  int64_t run_length = 0;    // values that lie side by side in both
  int64_t num_runs = 0;
  int64_t run_stride = 0;  // from run to run in the model's flat vector
  /// What Muon steps: neither the embedding nor the head, nor a bias or a norm.
  bool is_block_matrix() const { return block_idx >= 0 && local.shape.size() == 2; }
};

/// In the order of the part's flat vector. A tied embedding is held at both ends of the model: by a
/// last part too, in front of its blocks. Throws Failure (exit 2) if the heads or the feed-forward
/// width cannot be divided by tensor_count.
std::vector<PartSpec> part_specs(const ModelConfig& config, const ModelPart& part);
int64_t num_values(const std::vector<PartSpec>& specs);

/// Calls visit(local_begin, global_begin, length) for the runs of [begin, end) of the model's flat
/// vector that the part holds.
void for_each_run(const std::vector<PartSpec>& specs,
                  int64_t begin,
                  int64_t end,
                  const std::function<void(int64_t, int64_t, int64_t)>& visit);

}  // namespace pelago::model
