// What differs between the versions of libtorch that pelago builds against: 1.13 (Debian 12) and
// 2.x (the vendors' plug-ins).
#pragma once

#include <torch/version.h>
#if TORCH_VERSION_MAJOR >= 2
#include <c10/core/DeviceType.h>
#endif

namespace pelago::chips {

/// Gives the slot for plug-ins a name of its own. libtorch 1.13 cannot: it says "privateuseone".
inline void name_private_backend([[maybe_unused]] const char* name) {
#if TORCH_VERSION_MAJOR >= 2
  c10::register_privateuse1_backend(name);
#endif
}

}  // namespace pelago::chips
