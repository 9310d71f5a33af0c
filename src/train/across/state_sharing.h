// Sites in step each hold a part of the model, but a checkpoint is to be whole at every site: then
// any of them can export the model, and a site that never comes back takes nothing with it. So the
// sites' first ranks give each other what they hold, behind training: piece by piece, each
// acknowledged before the next leaves, so that activations have the line to themselves but for one
// piece a round trip.
#pragma once

#include <cstddef>
#include <vector>

#include "model/config.h"
#include "plan/plan.h"
#include "train/across/bridge.h"
#include "train/messages.h"
#include "train/process/host_state.h"

namespace pelago::train {

/// By site: ranges of the flat vector [N] that it gives to the others, ascending; what several
/// hold, the first of them gives. Together they are the whole vector.
std::vector<std::vector<Fragment>> ranges_by_site(const plan::Plan& plan,
                                                  const model::ModelConfig& model);

/// state: [N] each, this site's part in place; when it returns, all of it is. The first rank of
/// every site calls it, for the same step, on one thread at a time. Throws Failure if a site is
/// silent.
void share_state(const HostState& state,
                 const plan::Plan& plan,
                 const model::ModelConfig& model,
                 size_t site_idx,
                 Bridge& bridge);

}  // namespace pelago::train
