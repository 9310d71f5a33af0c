#include "chips/cuda_shaped/vendors.h"

#include "chips/amd/amd.h"
#include "chips/ascend/ascend.h"
#include "chips/cambricon/cambricon.h"
#include "chips/enflame/enflame.h"
#include "chips/mthreads/mthreads.h"
#include "chips/vendor/search.h"
#include "chips/vendor/vendor.h"

namespace pelago::chips {

std::span<const Vendor> all_vendors() {
  // FlagCX detects them in this order (plugin/torch/_build_config.py).
  static const std::vector<Vendor> vendors = {iluvatar(),
                                              cambricon(),
                                              metax(),
                                              hygon(),
                                              mthreads(),
                                              ascend(),
                                              enflame(),
                                              amd(),
                                              ppu(),
                                              nvidia()};
  return vendors;
}

const Vendor* find_plugin_vendor(const std::string& torch_device) {
  for (const Vendor& vendor : all_vendors()) {
    if (vendor.is_plugin() && vendor.torch_device == torch_device) return &vendor;
  }
  return nullptr;
}

const Vendor& cuda_shaped_vendor_here() {
  for (const Vendor& vendor : all_vendors()) {
    if (!vendor.is_plugin() && find_sign(vendor)) return vendor;
  }
  return all_vendors().back();
}

std::string native_collective_of(const std::string& device) {
  const std::string kind = device.substr(0, device.find(':'));
  if (kind == "emulated") return "emuccl";
  if (kind == "cuda") return cuda_shaped_vendor_here().collective;
  const Vendor* const vendor = find_plugin_vendor(kind);
  return vendor == nullptr ? "" : vendor->collective;
}

}  // namespace pelago::chips
