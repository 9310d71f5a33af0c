// The loader of the emulator plug-in, and the device that speaks to it.
#pragma once

#include <memory>
#include <string>

#include "chips/device.h"

namespace pelago::chips {

/// name: what the device was opened as. Throws Failure if the plug-in is missing or does not fit,
/// if another plug-in holds libtorch's slot, or if the catalogue knows too little of the chip.
std::unique_ptr<Device> open_emulated(const std::string& name,
                                      const Chip& chip,
                                      const EmulationOptions& options);

/// Where the plug-in is looked for.
std::filesystem::path emulator_path(const EmulationOptions& options);

}  // namespace pelago::chips
