// What a chip of the catalogue would need for a job, before anyone has switched one on: a roofline.
// Matrix products run at the chip's training rate, everything else moves bytes through its memory,
// each operator takes a moment to start, and none of these overlap, because a step is a chain of
// operators. For models of a few million parameters the starts are most of it.
#pragma once

#include <string>

#include "chips/catalogue.h"
#include "plan/fleet.h"
#include "plan/job.h"
#include "plan/plan.h"

namespace pelago::plan {

/// The parts of a step, for one chip at the catalogue's pace (no slowdown).
struct Roofline {
  double sequence_compute_s = 0;   // matrix products, forward and backward, of one sequence
  double sequence_memory_s = 0;    // activations written and read for one sequence
  double microbatch_memory_s = 0;  // weights read, their gradients written and added up
  double microbatch_launch_s = 0;  // operators started
  double step_s = 0;               // gradient norm and optimizer: bytes and starts
};
Roofline chip_roofline(const chips::Chip& chip, const JobConfig& job);
/// A processor that nobody measured.
Roofline processor_roofline(const JobConfig& job, double num_cores);

/// The chip behind a device; null for a processor and for a real device of unknown kind.
const chips::Chip* find_chip(const FleetDevice& device, const chips::Catalogue& catalogue);

/// From the probe if there is one, else from the catalogue, times the slowdown for what is
/// emulated. Throws Failure (exit 2): the probe lacks the device; no probe, and the device's chip
/// is not known.
DeviceProfile profile_device(const FleetDevice& device,
                             const JobConfig& job,
                             const FleetConfig& fleet,
                             const chips::Catalogue& catalogue,
                             const Probe* probe);

/// Bytes that a device offers: the emulation's limit, the chip's usable memory, or the host's.
/// 0: not known.
double device_memory_bytes(const FleetDevice& device,
                           const FleetConfig& fleet,
                           const chips::Catalogue& catalogue);
/// Memory of this machine.
double host_memory_bytes();

/// Values that one layer keeps for backward, a token. Shared by the memory and the time estimate.
double activation_values(const model::ModelConfig& model);

}  // namespace pelago::plan
