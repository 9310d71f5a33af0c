// A device of a vendor whose chips libtorch reaches through a plug-in.
#pragma once

#include <memory>
#include <string>

#include "chips/device.h"
#include "chips/vendor/vendor.h"

namespace pelago::chips {

/// name: "npu:0". Throws Failure naming what is missing and how to get it: the plug-in, a function
/// of it, the device; or that it initialised without an error and still cannot hold a tensor.
std::unique_ptr<Device> open_plugin_device(const std::string& name,
                                           int device_idx,
                                           const Vendor& vendor,
                                           const Catalogue& catalogue);

}  // namespace pelago::chips
