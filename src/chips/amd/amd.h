// AMD: libtorch's ROCm build, in which the chips answer to "cuda".
#pragma once

#include "chips/vendor/vendor.h"

namespace pelago::chips {

Vendor amd();

}  // namespace pelago::chips
