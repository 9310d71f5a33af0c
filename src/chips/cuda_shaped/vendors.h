// Vendors whose chips answer to "cuda" in a libtorch of the vendor's own.
#pragma once

#include "chips/vendor/vendor.h"

namespace pelago::chips {

Vendor nvidia();
Vendor metax();
Vendor hygon();
Vendor iluvatar();
Vendor ppu();

}  // namespace pelago::chips
