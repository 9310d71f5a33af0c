// A site of several vendors: inside a vendor group the chips' own library and links, between groups
// bytes over the hosts. Each rank passes only its part of its group's sum through its host, so the
// narrow way from chip to host carries 1/s of the vector for a group of s, not all of it. Where the
// links are known and slow, some chunks pass the hosts whole at the same time (host_share.h).
//
// Order of a sum: inside a group the library's (emulated chips: rank order), then the groups' sums
// in the order of their lowest ranks. Chunks that pass the hosts whole, the last few values of a
// vector that do not divide evenly, and vectors too short to be worth cutting are added on the
// hosts in rank order. Every rank ends with the same bits in any case, because each value is added
// once on each border and copied from there.
#pragma once

#include <memory>

#include "chips/collective.h"

namespace pelago::chips {

/// What options.native_library and options.vendor_groups ask for, over a collective between the
/// hosts that all ranks have opened: native for one group, hierarchical for several, the hosts'
/// alone if every rank is a group of its own. Throws Failure (exit 2) if the options contradict
/// each other, Failure (exit 1) if a library is missing.
std::unique_ptr<Collective> open_between_devices(std::unique_ptr<Collective> host,
                                                 const CollectiveOptions& options);

}  // namespace pelago::chips
