// The collective of a single rank, which needs no transport.
#pragma once

#include <memory>

#include "chips/collective.h"

namespace pelago::chips {

std::unique_ptr<Collective> open_alone_collective();

}  // namespace pelago::chips
