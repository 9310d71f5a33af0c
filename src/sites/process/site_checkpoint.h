// A site's part of a checkpoint: sites.safetensors with "global", "outer_momentum" and
// "kept_error", f32 [N] each. Its metadata hold what belongs to them: the newest exchange in each
// fragment
// ("applied"), the data steps that were sent with it ("sent_data"), and the hash by which sites
// find a step that all of them can go back to ("hash").
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "sites/exchange/global_state.h"
#include "sites/protocol/messages.h"

namespace pelago::sites {

/// Adds the file to a checkpoint that is being made. kNoSpace or kUnavailable if it cannot.
Status try_write_site_checkpoint(const std::filesystem::path& dir, const GlobalState& state);
/// Throws Failure naming the file if it is missing, damaged or of another model.
void read_site_checkpoint(const std::filesystem::path& dir, GlobalState& state);
/// The global weights of a checkpoint. Throws Failure.
std::vector<float> read_global_weights(const std::filesystem::path& dir);
/// A checkpoint as others compare it; of a run of one site the hash is empty. kCorrupt if a file
/// cannot be read.
Result<CheckpointOffer> offer_of(const std::filesystem::path& checkpoint);
/// Of sites in step, whose checkpoints are the same files everywhere: the hash is their manifest's.
std::vector<CheckpointOffer> offer_joint_checkpoints(const std::filesystem::path& checkpoints_dir,
                                                     std::vector<std::string>& problems);
/// The site's good checkpoints with their hashes, oldest first. problems: a sentence is added for
/// each that is damaged.
std::vector<CheckpointOffer> offer_checkpoints(const std::filesystem::path& checkpoints_dir,
                                               std::vector<std::string>& problems);

}  // namespace pelago::sites
