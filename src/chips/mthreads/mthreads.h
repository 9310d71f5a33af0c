// Moore Threads: the plug-in torch_musa, device "musa".
#pragma once

#include "chips/vendor/vendor.h"

namespace pelago::chips {

Vendor mthreads();

}  // namespace pelago::chips
