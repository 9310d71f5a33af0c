#include <dlfcn.h>

#include <algorithm>

#include "base/error.h"
#include "chips/checks/checks.h"
#include "chips/cuda_shaped/device.h"
#include "chips/native/facts.h"
#include "chips/vendor/search.h"
#include "chips/vendor/vendor.h"

namespace pelago::chips::checks {

namespace fs = std::filesystem;

namespace {

std::string joined(const std::vector<fs::path>& folders) {
  std::string text;
  for (const fs::path& folder : folders) text += (text.empty() ? "" : ", ") + folder.string();
  return text;
}

bool is_in_fleet(const Vendor& vendor, const DoctorOptions& options) {
  return std::ranges::any_of(options.fleet, [&](const std::string& device) {
    return vendor.is_plugin() && device.substr(0, device.find(':')) == vendor.torch_device;
  });
}

/// Tries the vendor's collectives: "libhccl.so opens". Empty if none does; why: the last reason.
std::string open_collectives(const native::LibraryFacts& facts,
                             const std::vector<fs::path>& folders,
                             std::string& why) {
  for (const char* const library : facts.files) {
    const std::string file = find_library(library, folders).value_or(library);
    if (void* const opened = dlopen(file.c_str(), RTLD_LAZY | RTLD_LOCAL)) {
      dlclose(opened);
      return file + " opens";
    }
    const char* const reason = dlerror();
    why = reason != nullptr ? reason : std::string(library) + " does not open";
  }
  return "";
}

void add_collectives(const Vendor& vendor, const std::vector<fs::path>& folders, Check& check) {
  if (vendor.collective.empty()) return;
  const native::LibraryFacts& facts = native::find_library(vendor.collective);
  std::string why;
  const std::string opened = open_collectives(facts, folders, why);
  check.text += "; " + (opened.empty() ? why : opened);
  if (check.level != Check::kOk || !opened.empty()) return;
  check.level = Check::kWarn;
  check.remedy = fmt::format("its chips will exchange through the host; for their own links {}",
                             facts.how_to_get);
}

/// The plug-in's file. Loading it to see would take libtorch's slot.
Check plugin_file(const Vendor& vendor, const std::vector<fs::path>& folders, bool is_needed) {
  for (const std::string& library : vendor.libraries) {
    if (const auto found = find_library(library, folders)) {
      return {.text = found->string() + " is here"};
    }
  }
  return {
      .level = is_needed ? Check::kFail : Check::kWarn,
      .text = fmt::format(
          "{} is neither in {} nor on the library path", vendor.libraries.front(), joined(folders)),
      .remedy = vendor.how_to_get};
}

}  // namespace

Check vendor(const Vendor& vendor, const std::string& sign, bool is_wanted) {
  const std::vector<fs::path> folders = library_folders(vendor);
  Check check;
  if (vendor.is_plugin()) check = plugin_file(vendor, folders, is_wanted && !sign.empty());
  check.name = vendor.is_plugin() ? vendor.torch_device : vendor.tool;
  check.text = fmt::format("{}: {}{}{}",
                           vendor.name,
                           sign.empty() ? "no sign of a device" : sign,
                           check.text.empty() ? "" : "; ",
                           check.text);
  add_collectives(vendor, folders, check);
  return check;
}

Findings vendors(const DoctorOptions& options) {
  Findings findings;
  std::string tools;
  for (const Vendor& known : all_vendors()) {
    const std::optional<fs::path> sign = find_sign(known);
    const bool is_wanted = is_in_fleet(known, options);
    tools += (tools.empty() ? "" : ", ") + known.tool;
    if (!sign && !is_wanted) continue;
    findings.push_back(vendor(known, sign ? sign->string() + " is here" : "", is_wanted));
  }
  if (findings.empty()) {
    findings.push_back({.name = "vendors",
                        .text = "no sign of any vendor's chips: no driver's files in /dev, none of "
                                "these on PATH: " +
                                tools});
  }
  return findings;
}

Check cuda_devices() {
  const int num_devices = num_cuda_devices();
  const Vendor& vendor = cuda_shaped_vendor_here();
  const DeviceProperties first = vendor.read_properties(0);
  if (num_devices == 0 && !first.name.empty()) {
    return {.level = Check::kWarn,
            .name = "cuda",
            .text = fmt::format("the driver has {}, but this libtorch cannot drive it", first.name),
            .remedy = vendor.how_to_get};
  }
  std::string text = num_devices == 0 ? "no CUDA device" : "";
  for (int i = 0; i < num_devices; ++i) {
    const DeviceProperties properties = vendor.read_properties(i);
    text += fmt::format("{}cuda:{} {} with {:.1f} GiB",
                        i == 0 ? "" : ", ",
                        i,
                        properties.name,
                        static_cast<double>(properties.memory_bytes) / 0x1p30);
  }
  return {.name = "cuda", .text = text};
}

}  // namespace pelago::chips::checks
