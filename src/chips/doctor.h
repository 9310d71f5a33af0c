// `pelago doctor`: what of this machine would keep a job from running or make it slow, each finding
// with its remedy. Ten seconds at most.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "chips/device.h"

namespace pelago::chips {

struct Check {
  enum Level { kOk, kWarn, kFail };
  Level level = kOk;
  std::string name = {};    // "blas"
  std::string text = {};    // what was found, with figures and units
  std::string remedy = {};  // what to do; empty if all is well
};

struct DoctorOptions {
  /// Where runs will be written: its free space and the time of an fsync are measured.
  std::filesystem::path work_dir = ".";
  int port = 0;  // a port the job will listen on; 0 tries any
  /// Devices that must give known answers; empty: cpu, every CUDA device, and the first device of
  /// the vendor's plug-in that is here, or else one emulated chip.
  std::vector<std::string> devices = {};
  /// Devices of the fleet: what their vendors need is looked for even if nothing shows that they
  /// are here.
  std::vector<std::string> fleet = {};
  std::filesystem::path plugin_dir = {};  // of the emulator's library; empty: beside the program
};

/// Never throws for what it finds: a check that cannot be made is a kFail with the reason.
std::vector<Check> examine_machine(const DoctorOptions& options);

/// KnownAnswerTest on an open device.
Check check_known_answers(Device& device);

}  // namespace pelago::chips
