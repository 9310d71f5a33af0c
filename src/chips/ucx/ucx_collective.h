// The collective between any two workers, whatever their vendor: UCX tag messages over shared
// memory, RDMA or TCP, host memory only.
#pragma once

#include <memory>

#include "chips/collective.h"

namespace pelago::chips {

/// options.num_ranks >= 2. Returns once every rank is connected to every other. Throws Failure
/// naming the first rank that did not come within options.timeout_s.
std::unique_ptr<Collective> open_ucx_collective(const CollectiveOptions& options);

}  // namespace pelago::chips
