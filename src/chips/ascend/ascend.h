// Huawei Ascend: the plug-in torch_npu, device "npu".
#pragma once

#include "chips/vendor/vendor.h"

namespace pelago::chips {

Vendor ascend();

}  // namespace pelago::chips
