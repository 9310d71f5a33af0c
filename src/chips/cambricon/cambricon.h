// Cambricon MLU: the plug-in torch_mlu, device "mlu".
#pragma once

#include "chips/vendor/vendor.h"

namespace pelago::chips {

Vendor cambricon();

}  // namespace pelago::chips
