// Times of a model's layers as somebody has measured them, by microbatch and by tensor parallelism,
// in the place of a probe: for chips that are not at hand, and for other people's measurements.
// docs/FILES.md has the format (that of Sailor's profiles, github.com/eth-easl/sailor).
#pragma once

#include <string>
#include <vector>

#include "chips/catalogue.h"
#include "plan/cost/device_profile.h"

namespace pelago::plan {

struct LayerTimes {
  Probe probe;                     // for every device of the fleet
  std::vector<std::string> notes;  // what was not taken as it stands: one sentence each
};

/// sources: "NAME=FILE" for times of one chip, or "FILE" for times of several by name. A device's
/// name is its `profile` in fleet.toml, else its chip's id. At train.microbatch_sequences the times
/// are those measured; smaller microbatches lie on the line to a quarter of it, or the nearest
/// below that was measured. A microbatch never takes longer than a larger one. Throws Failure (exit
/// 2) in one line naming file and place: no JSON, a time that is no number, a chip, microbatch,
/// width or layer that is missing, another sequence length.
LayerTimes read_layer_times(const std::vector<std::string>& sources,
                            const JobConfig& job,
                            const FleetConfig& fleet,
                            const chips::Catalogue& catalogue);

}  // namespace pelago::plan
