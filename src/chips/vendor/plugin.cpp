#include "chips/vendor/plugin.h"

#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Type.h>
#include <dlfcn.h>
#include <torch/version.h>

#include "base/error.h"

namespace pelago::chips {
namespace {

constexpr int kMode = RTLD_NOW | RTLD_GLOBAL;  // global: plug-ins of plug-ins look their own up

std::string last_loader_error() {
  const char* const reason = dlerror();
  return reason != nullptr ? reason : "no reason given";
}

/// "x.so: undefined symbol: _ZN3c105ErrorE" -> "c10::Error"; empty if that is not what it says.
std::string missing_symbol(const std::string& reason) {
  static const std::string kWords = "undefined symbol: ";
  const size_t at = reason.find(kWords);
  if (at == std::string::npos) return "";
  const std::string symbol = reason.substr(at + kWords.size());
  return c10::demangle(symbol.substr(0, symbol.find_first_of(" ,\n")).c_str());
}

[[noreturn]] void refuse(const PluginRequest& request, const std::string& reason) {
  const std::string symbol = missing_symbol(reason);
  const bool needs_newer_runtime = reason.find(": version `") != std::string::npos;
  if (!symbol.empty() || needs_newer_runtime) {
    fail(
        "{}: {} was built for another libtorch or compiler ({}): this is libtorch {}.{}.{} with "
        "_GLIBCXX_USE_CXX11_ABI={}; build pelago against the libtorch that the plug-in is for",
        request.who,
        request.file.string(),
        symbol.empty() ? reason.substr(reason.find("version `")) : "it wants " + symbol,
        TORCH_VERSION_MAJOR,
        TORCH_VERSION_MINOR,
        TORCH_VERSION_PATCH,
        _GLIBCXX_USE_CXX11_ABI);
  }
  std::string looked_in;
  for (const auto& folder : request.looked_in) {
    looked_in += (looked_in.empty() ? "" : ", ") + folder.string();
  }
  fail("{} needs {}, which cannot be loaded ({}){}; {}",
       request.who,
       request.file.string(),
       reason,
       looked_in.empty() ? "" : "; looked for in " + looked_in + " and on the library path",
       request.remedy);
}

}  // namespace

bool is_slot_taken() { return c10::impl::hasDeviceGuardImpl(c10::DeviceType::PrivateUse1); }

Plugin::Plugin(const PluginRequest& request) : file_(request.file) {
  library_ = dlopen(file_.c_str(), kMode | RTLD_NOLOAD);
  if (library_ != nullptr) return;
  if (is_slot_taken()) {
    fail(
        "{}: {} cannot be loaded: another plug-in holds libtorch's slot for plug-ins; one process "
        "drives one vendor, so give each vendor's devices processes of their own",
        request.who,
        file_.string());
  }
  library_ = dlopen(file_.c_str(), kMode);
  if (library_ == nullptr) refuse(request, last_loader_error());
  if (!is_slot_taken()) {
    fail("{}: {} was loaded but registers no device with libtorch: it is no plug-in for it; {}",
         request.who,
         file_.string(),
         request.remedy);
  }
}

void* Plugin::try_find(const char* symbol) const { return dlsym(library_, symbol); }

void* Plugin::find_or_fail(const char* symbol, const std::string& remedy) const {
  void* const found = try_find(symbol);
  if (found == nullptr) fail("{} lacks {}; {}", file_.string(), c10::demangle(symbol), remedy);
  return found;
}

}  // namespace pelago::chips
