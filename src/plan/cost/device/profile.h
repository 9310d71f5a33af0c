// What each device of a fleet needs for a job: from a probe, else from the catalogue.
#pragma once

#include <string>

#include "chips/catalogue.h"
#include "plan/fleet.h"
#include "plan/job.h"
#include "plan/plan.h"

namespace pelago::plan {

/// The chip behind a device; null for a processor and for a real device of unknown kind.
const chips::Chip* find_chip(const FleetDevice& device, const chips::Catalogue& catalogue);

/// site: the device's. num_cards: of its kind in its node. From the probe if there is one, else
/// from the catalogue, times the slowdown for what is emulated. Throws Failure (exit 2): the probe
/// lacks the device; no probe, and the device's chip is not known; a dtype that the chip does not
/// have.
DeviceProfile profile_device(const std::string& site,
                             const FleetDevice& device,
                             const JobConfig& job,
                             const FleetConfig& fleet,
                             const chips::Catalogue& catalogue,
                             const Probe* probe,
                             int num_cards);

/// Throws Failure (exit 2) if the job asks for a dtype that the chip does not have.
void refuse_wrong_dtype(const JobConfig& job,
                        const FleetDevice& device,
                        const chips::Catalogue& catalogue);

/// Bytes that a device offers: the emulation's limit, the chip's usable memory, or the host's.
/// 0: not known.
double device_memory_bytes(const FleetDevice& device,
                           const FleetConfig& fleet,
                           const chips::Catalogue& catalogue);
/// Watts of a device at work: the fleet's word, else the catalogue's; 0: not known.
double device_power_w(const FleetDevice& device, const chips::Catalogue& catalogue);

/// Memory of this machine.
double host_memory_bytes();

/// What a microbatch on the device waits for most: "compute", "memory" or "launches"; "compute" for
/// a device whose chip is not known.
std::string name_bound(const FleetDevice& device,
                       const JobConfig& job,
                       const chips::Catalogue& catalogue,
                       int64_t microbatch);

/// How many times as long as planned a chip's products may take, at best and at worst.
chips::Interval pace_ratios(const chips::Chip& chip);

/// Bytes a value of this dtype takes.
double value_bytes(const std::string& dtype);

}  // namespace pelago::plan
