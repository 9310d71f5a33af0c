// The catalogue of faults, F01 to F69, and how each is shown here: injected into a run of real
// processes, held by a test of its own, or not to be had on one machine, with the reason.
#pragma once

#include <vector>

#include "chaos/scene.h"

namespace pelago::chaos {

/// The run that a fault is injected into.
enum class Stage {
  kSteady,    // nobody is left out: the loss curve must be that of a calm run, bit for bit
  kChanging,  // sites come and go
  kPackets,   // over lines of packets between namespaces
};

struct Fault {
  const char* id;
  const char* what;
  Stage stage = Stage::kSteady;
  Injection inject = nullptr;  // null: see below
  const char* test = nullptr;  // "PROGRAM: pattern of doctest", run by name
  const char* why_not = nullptr;
};

/// In the order of the catalogue.
const std::vector<Fault>& catalogue();

}  // namespace pelago::chaos
