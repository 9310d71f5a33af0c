// A checkpoint is a folder step-N: safetensors, state.json, and manifest.json with the hash of each
// file, written last. It is made under a temporary name, forced to disk and renamed: a folder that
// is called step-N is whole, and what it holds is verified before it is believed. Layout-free: it
// fits any plan of the same model.
//   weights.safetensors    "master" f32 [N], in the order of parameter_specs()
//   optimizer.safetensors  "m", "v" f32 [N]
//   sites.safetensors      (many sites) "global", "outer_momentum", "kept_error" f32 [N]
//   state.json             step, samples consumed, tokens, seed, model hash, dataset hash,
//   tokenizer hash
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"

namespace pelago::train {

struct TrainState {
  int64_t step = 0;    // completed steps
  int64_t tokens = 0;  // trained by this site so far
  uint64_t seed = 0;
  std::string model_hash;  // of config.json
  std::string dataset_hash;
  std::string tokenizer_hash;
};
std::string to_json(const TrainState& state);
TrainState train_state_from_json(const std::string& json, const std::string& name);

/// The temporary folder for step N, emptied. Throws Failure if it cannot be made.
std::filesystem::path begin_checkpoint(const std::filesystem::path& checkpoints_dir, int64_t step);
/// Hashes the files, writes the manifest, forces all to disk, renames to step-N, deletes all but
/// the newest `keep`. On failure (disk full) removes the temporary folder, leaves older checkpoints
/// alone and says why.
Status finish_checkpoint(const std::filesystem::path& checkpoints_dir, int64_t step, int64_t keep);
/// Empty if the checkpoint is whole; else what is wrong, naming the file.
std::string verify_checkpoint(const std::filesystem::path& checkpoint);
/// Steps of the checkpoints that verify, ascending. Warns in the log about each that does not.
std::vector<int64_t> good_checkpoints(const std::filesystem::path& checkpoints_dir);
std::filesystem::path checkpoint_path(const std::filesystem::path& checkpoints_dir, int64_t step);

}  // namespace pelago::train
