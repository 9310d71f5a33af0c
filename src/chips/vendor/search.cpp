#include "chips/vendor/search.h"

#include <c10/core/Device.h>
#include <dlfcn.h>
#include <stdlib.h>

#include <cstddef>
#include <sstream>

#include "base/files.h"

namespace pelago::chips {

namespace fs = std::filesystem;

namespace {

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

/// Where this process found libtorch.
fs::path libtorch_folder() {
  Dl_info info{};
  // A function of libc10 that every program with libtorch has.
  const auto address = reinterpret_cast<const void*>(
      static_cast<std::string (*)(c10::DeviceType, bool)>(&c10::DeviceTypeName));
  if (dladdr(address, &info) == 0 || info.dli_fname == nullptr) return {};
  return fs::path(info.dli_fname).parent_path();
}

/// The folders of the dynamic loader, LD_LIBRARY_PATH and run paths included.
std::vector<fs::path> loader_folders() {
  void* const program = dlopen(nullptr, RTLD_LAZY);
  Dl_serinfo size{};
  if (program == nullptr || dlinfo(program, RTLD_DI_SERINFOSIZE, &size) != 0) return {};
  std::vector<std::byte> storage(size.dls_size);
  auto* const dirs = reinterpret_cast<Dl_serinfo*>(storage.data());
  *dirs = size;
  if (dlinfo(program, RTLD_DI_SERINFO, dirs) != 0) return {};
  std::vector<fs::path> folders;
  for (unsigned i = 0; i < dirs->dls_cnt; ++i) folders.emplace_back(dirs->dls_serpath[i].dls_name);
  return folders;
}

}  // namespace

ReadVariable process_environment() {
  return [](const std::string& name) -> std::string {
    const char* const value = ::getenv(name.c_str());
    return value == nullptr ? "" : value;
  };
}

std::vector<fs::path> library_folders(const Vendor& vendor, const ReadVariable& read_variable) {
  std::vector<fs::path> folders;
  for (const LibraryPlace& place : vendor.places) {
    const std::string set = place.variable.empty() ? "" : read_variable(place.variable);
    const std::string& prefix = set.empty() ? place.prefix : set;
    if (!prefix.empty()) folders.push_back(fs::path(prefix) / place.subfolder);
  }
  folders.push_back(program_path().parent_path());
  // site-packages/torch/lib/libc10.so -> site-packages/<package>/lib
  const fs::path packages = libtorch_folder().parent_path().parent_path();
  if (vendor.is_plugin() && is_there(packages / "torch")) {
    for (const std::string& library : vendor.libraries) {
      std::string package = fs::path(library).stem();  // "libtorch_npu"
      if (package.starts_with("lib")) package = package.substr(3);
      folders.push_back(packages / package / "lib");
    }
  }
  return folders;
}

std::optional<fs::path> find_library(const std::string& library,
                                     const std::vector<fs::path>& folders) {
  for (const fs::path& folder : folders) {
    if (is_there(folder / library)) return folder / library;
  }
  for (const fs::path& folder : loader_folders()) {
    if (is_there(folder / library)) return folder / library;
  }
  return std::nullopt;
}

std::optional<fs::path> find_sign(const Vendor& vendor, const ReadVariable& read_variable) {
  for (const std::string& node : vendor.nodes) {
    if (is_there(node)) return node;
  }
  std::istringstream path(read_variable("PATH"));
  for (std::string folder; std::getline(path, folder, ':');) {
    if (!vendor.tool.empty() && is_there(fs::path(folder) / vendor.tool)) {
      return fs::path(folder) / vendor.tool;
    }
  }
  return std::nullopt;
}

}  // namespace pelago::chips
