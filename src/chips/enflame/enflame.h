// Enflame: the plug-in torch_gcu, device "gcu".
#pragma once

#include "chips/vendor/vendor.h"

namespace pelago::chips {

Vendor enflame();

}  // namespace pelago::chips
