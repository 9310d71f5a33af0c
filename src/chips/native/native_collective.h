// Device tensors go through the chips' own library, everything else through a collective between
// the hosts. All ranks are of one vendor group.
#pragma once

#include <memory>

#include "chips/collective.h"
#include "chips/native/library.h"

namespace pelago::chips {

/// All ranks of host call it together. options.device is needed. Throws Failure if the library's
/// communicator cannot be joined.
std::unique_ptr<Collective> open_native_collective(std::unique_ptr<Collective> host,
                                                   const native::Library& library,
                                                   const CollectiveOptions& options);

}  // namespace pelago::chips
