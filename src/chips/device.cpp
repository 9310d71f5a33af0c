#include "chips/device.h"

#include <charconv>
#include <string_view>

#include "base/error.h"
#include "chips/cpu/device.h"
#include "chips/cuda_shaped/device.h"
#include "chips/emulated/device.h"
#include "chips/vendor/plugin_device.h"
#include "chips/vendor/vendor.h"

namespace pelago::chips {
namespace {

constexpr std::string_view kForms =
    "write cpu, cuda:N, emulated:CHIP, or a vendor's plug-in as npu:N";

/// "npu:1" -> 1, "npu" -> 0.
int device_idx_of(const std::string& name, std::string_view text) {
  int device_idx = 0;
  if (text.empty()) return device_idx;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), device_idx);
  if (error != std::errc() || end != text.data() + text.size() || device_idx < 0) {
    fail_usage("device {}: {} is not a device's number; {}", name, text, kForms);
  }
  return device_idx;
}

}  // namespace

std::unique_ptr<Device> open_device(const std::string& name,
                                    const Catalogue& catalogue,
                                    const EmulationOptions& emulation) {
  const size_t colon = name.find(':');
  const std::string kind = name.substr(0, colon);
  const std::string rest = colon == std::string::npos ? "" : name.substr(colon + 1);
  if (kind == "cpu") {
    device_idx_of(name, rest);
    return open_cpu(name);
  }
  if (kind == "emulated") {
    if (rest.empty()) fail_usage("device {} names no chip; write emulated:a100", name);
    return open_emulated(name, catalogue.find(rest), emulation);
  }
  if (kind == "cuda") return open_cuda(name, device_idx_of(name, rest), catalogue);
  if (const Vendor* vendor = find_plugin_vendor(kind)) {
    return open_plugin_device(name, device_idx_of(name, rest), *vendor, catalogue);
  }
  for (const Chip& chip : catalogue.chips()) {
    if (chip.torch_device != kind || kind.empty()) continue;
    fail("device {}: pelago does not drive the chips of {} yet; try emulated:{} on this machine",
         name,
         chip.vendor,
         chip.id);
  }
  fail_usage("device {} is of no known kind; {}", name, kForms);
}

}  // namespace pelago::chips
