// What pelago must know of a chip's vendor, as a value with a few functions. There are two kinds. A
// plug-in is a library that is loaded into libtorch's one slot for other people's chips
// (PrivateUse1); the emulator takes the same road. The CUDA-shaped ones ship a libtorch of their
// own in which their chips answer to "cuda": pelago is then built against that libtorch, and there
// is nothing to load. Each vendor's folder says what is special about it; no other code asks who
// the vendor is.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chips/vendor/driver.h"

namespace pelago::chips {

class Plugin;

/// A folder where a vendor's libraries may lie.
struct LibraryPlace {
  std::string variable = {};  // the environment variable that holds the prefix; may be empty
  std::string prefix = {};    // where the variable is not set; empty: then there is no such place
  std::string subfolder = "lib64";
};

struct Vendor {
  std::string name = {};          // as the catalogue writes it: "Huawei"
  std::string torch_device = {};  // libtorch's word: "npu"; "cuda" for the CUDA-shaped

  // The plug-in; no libraries for the CUDA-shaped.
  std::vector<std::string> libraries = {};  // file names, in the order they are tried
  std::vector<LibraryPlace> places = {};
  std::string how_to_get = {};  // an imperative: "install ..."
  std::string slot_name = {};   // what we call libtorch's slot, where the plug-in leaves that to us
  /// Begins to use a device, after the plug-in was loaded. Throws Failure or c10::Error.
  void (*initialise)(const Plugin& plugin, const std::string& device) = nullptr;
  void (*finish)(const Plugin& plugin) = nullptr;  // when the device is closed

  /// Its own collectives, as chips/native/facts.h calls them: "hccl". Empty: exchanges go through
  /// the host.
  std::string collective = {};

  // What shows that such a chip is in this machine.
  std::string tool = {};                // "npu-smi"
  std::vector<std::string> nodes = {};  // files that its driver makes

  /// Set in the process before the plug-in is loaded, unless they are set.
  std::vector<std::pair<std::string, std::string>> environment = {};
  std::vector<std::string> quirks = {};  // what a person must know of it, a sentence each

  DeviceProperties (*read_properties)(int device_idx) = nullptr;  // null: nobody can tell

  bool is_plugin() const { return !libraries.empty(); }
};

/// All of them, in the order in which a machine is searched for their chips: the most imitated
/// vendor comes last, because chips that imitate it answer to its tool too.
std::span<const Vendor> all_vendors();

/// The vendor whose plug-in gives this device, or null.
const Vendor* find_plugin_vendor(const std::string& torch_device);

/// The first CUDA-shaped vendor that shows on this machine; the last one if none does.
const Vendor& cuda_shaped_vendor_here();

/// The collectives that devices of this name have among themselves ("npu:0", "emulated:a100"), as
/// chips/native/facts.h calls them; empty: none but the host's.
std::string native_collective_of(const std::string& device);

}  // namespace pelago::chips
