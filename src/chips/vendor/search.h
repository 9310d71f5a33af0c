// Where a vendor's files lie. Vendors' installers leave their folders in environment variables of
// their own (ASCEND_HOME_PATH, NEUWARE_HOME, ...), and their plug-ins lie beside the libtorch that
// they were built for; the dynamic loader's own path knows neither.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "chips/vendor/vendor.h"

namespace pelago::chips {

/// The value of an environment variable; empty if it is not set.
using ReadVariable = std::function<std::string(const std::string& name)>;
ReadVariable process_environment();

/// Folders that may hold the vendor's libraries, whether they exist or not: its own places, beside
/// the program, and where a plug-in installed beside this libtorch would be.
std::vector<std::filesystem::path> library_folders(
    const Vendor& vendor, const ReadVariable& read_variable = process_environment());

/// The library in one of these folders or on the dynamic loader's path; nothing if it is in
/// neither. Nothing is loaded.
std::optional<std::filesystem::path> find_library(
    const std::string& library, const std::vector<std::filesystem::path>& folders);

/// What shows that the vendor's chips are in this machine: a driver's file, or its tool on PATH.
std::optional<std::filesystem::path> find_sign(
    const Vendor& vendor, const ReadVariable& read_variable = process_environment());

}  // namespace pelago::chips
