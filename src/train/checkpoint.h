// A checkpoint is a folder step-N: safetensors, state.json, and manifest.json with the hash of each
// file, written last. It is made under a temporary name, forced to disk and renamed: a folder that
// is called step-N is whole, and what it holds is verified before it is believed. Layout-free: it
// fits any plan of the same model.
//   weights.safetensors    "master" f32 [N], in the order of parameter_specs()
//   optimizer.safetensors  "m", "v" f32 [N]
//   sites.safetensors      (many sites) "global", "outer_momentum", "kept_error" f32 [N]
//   state.json             TrainState: the data position is data_step, and every random draw is a
//                          function of the seed, so nothing else is needed to go on bit for bit
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"

namespace pelago::train {

struct TrainState {
  int64_t step = 0;       // completed steps
  int64_t data_step = 0;  // of the site's lane, that the next step reads: the step, unless starts
                          // of this site were lost on the way
  int64_t tokens = 0;     // trained by this site so far
  uint64_t seed = 0;
  int64_t adam_steps = 0;           // updates applied: less than step if some were skipped
  double loss_scale = 0;            // fp16 chips; 0: not yet chosen
  int64_t loss_scale_steps = 0;     // good steps since the scale last changed
  std::string optimizer = "adamw";  // whose moments they are: those of one mean nothing to another
  std::string model_hash;           // of config.json
  std::string dataset_hash;
  std::string tokenizer_hash;
};
std::string to_json(const TrainState& state);
/// name: what the message of a Failure calls this text.
TrainState train_state_from_json(const std::string& json, const std::string& name);
/// Throws Failure naming what differs if the checkpoint called name is of another model, dataset,
/// tokenizer or optimizer than expected.
void refuse_other_run(const TrainState& found, const TrainState& expected, const std::string& name);

/// The temporary folder for step N, emptied. Throws Failure if it cannot be made.
std::filesystem::path begin_checkpoint(const std::filesystem::path& checkpoints_dir, int64_t step);
/// Hashes the files, writes the manifest, forces all to disk, renames to step-N, then deletes all
/// but the newest `keep` and those of later steps: they belong to a course that was given up when
/// the run went back to an earlier checkpoint; and what was begun of earlier steps and never
/// finished. On failure (disk full) removes the temporary folder,
/// leaves older checkpoints alone and says why.
Status finish_checkpoint(const std::filesystem::path& checkpoints_dir, int64_t step, int64_t keep);
/// Empty if the checkpoint is whole; else what is wrong, naming the file.
std::string verify_checkpoint(const std::filesystem::path& checkpoint);
/// Steps of the checkpoints that verify, ascending. Warns in the log about each that does not, and
/// adds the warning to problems if given.
std::vector<int64_t> good_checkpoints(const std::filesystem::path& checkpoints_dir,
                                      std::vector<std::string>* problems = nullptr);
/// Whether any folder there is called step-N, good or not.
bool has_checkpoint(const std::filesystem::path& checkpoints_dir);
std::filesystem::path checkpoint_path(const std::filesystem::path& checkpoints_dir, int64_t step);

}  // namespace pelago::train
