// The collective of ranks in several sites. Groups within one site are that site's own, with its
// vendors' links; what crosses a line goes through the bridge. Sums are added in rank order like
// everywhere, so sites in step hold the bits that one site would.
//
// Small values go to everybody at once and each rank adds them up: half a round trip. Two ranks
// do the same with tensors, which costs a line no more than a reduce-scatter and a gather between
// two would; of more ranks each adds its slice.
#pragma once

#include <memory>
#include <vector>

#include "chips/collective.h"
#include "train/across/bridge.h"

namespace pelago::train {

struct JointMembers {
  std::vector<int> ranks;    // who takes part, counted through all sites
  int first_local_rank = 0;  // of this site's ranks
  int num_local_ranks = 1;
};

/// local: of this site's ranks, bridge and device: all outlive the collective. channel: no other
/// collective of these ranks uses it.
std::unique_ptr<chips::Collective> open_joint_collective(chips::Collective& local,
                                                         Bridge& bridge,
                                                         BridgeChannel channel,
                                                         chips::Device& device,
                                                         const JointMembers& members);

}  // namespace pelago::train
