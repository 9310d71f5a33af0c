// What a job says of copies of checkpoints, for a site of its run.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "plan/job.h"
#include "sites/copies/checkpoint_copier.h"

namespace pelago::sites {

/// Nothing if the job says nothing of copies. Throws Failure (exit 2) if the place is none or the
/// environment names no account.
std::optional<CopierOptions> copier_options(const plan::JobConfig& job,
                                            const std::filesystem::path& run_dir,
                                            const std::string& site);

/// What the store has of the site's checkpoints: fetch_copy() brings one. problems: a sentence is
/// added if the store does not answer.
std::vector<CheckpointOffer> offer_copies(const CopierOptions& options,
                                          std::vector<std::string>& problems);

}  // namespace pelago::sites
