// A model's weights as the processors' kernels take them: matrices in panels, norms as f32. q, k
// and v of a layer are one matrix; gate and up are one, their panels alternating.
#pragma once

#include <filesystem>
#include <vector>

#include "chips/packed/core_team.h"
#include "chips/packed/packed_matrix.h"
#include "model/config.h"
#include "serve/runner/model_runner.h"

namespace pelago::serve {

struct PackedLayer {
  chips::packed::PackedMatrix qkv;                     // [(H+2K)*E,D]
  chips::packed::PackedMatrix output;                  // [D,H*E]
  chips::packed::PackedMatrix gate_up;                 // panels of gate and up in turn
  chips::packed::PackedMatrix down;                    // [D,F]
  std::vector<float> qkv_bias;                         // [(H+2K)*E], empty if there is none
  std::vector<float> q_norm, k_norm;                   // [E], empty if there is none
  std::vector<float> input_norm, post_attention_norm;  // [D]
};

struct PackedWeights {
  model::ModelConfig config;
  std::vector<PackedLayer> layers;
  chips::packed::PackedMatrix head;  // [V,D]; of a quantised model int8
  std::vector<float> final_norm;     // [D]
  /// [V,D], a row a token: bf16, or f32 if the weights are.
  bool embedding_is_f32 = false;
  chips::packed::LargeMemory embedding;

  size_t embedding_row_bytes() const;
  /// What a pass over one token reads.
  size_t num_bytes() const;
};

/// Throws Failure as StoredModel does, and for groups that do not divide a matrix.
PackedWeights pack_weights(const std::filesystem::path& folder,
                           const RunnerOptions& options,
                           chips::packed::CoreTeam& team);

}  // namespace pelago::serve
