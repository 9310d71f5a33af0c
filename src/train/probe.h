// How fast is a device for this job? Each device of the fleet is measured in a process of its own
// (probe/measure.h), as its worker will run: bound to the same cores, one vendor a process.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "chips/catalogue.h"
#include "plan/fleet.h"
#include "plan/job.h"
#include "plan/plan.h"

namespace pelago::train {

/// Measures in this process, which must not have opened another device. job.model.vocab_size is
/// set. Throws Failure if the model does not fit the device even one sequence at a time.
plan::DeviceProfile probe_device(const plan::JobConfig& job,
                                 const plan::FleetConfig& fleet,
                                 const std::string& device,
                                 const chips::Catalogue& catalogue);

/// Every different device of the fleet, one after the other, each in a child process (`pelago
/// probe-device`) bound to that device's cores. site: only its devices, as SITE/DEVICE, so that
/// probes made at several hosts can be put together; empty: all sites, on this host. Throws Failure
/// naming the device whose probe failed, and as soon as should_stop, which may be empty, says so.
plan::Probe probe_fleet(const plan::JobConfig& job,
                        const plan::FleetConfig& fleet,
                        const std::string& site,
                        const std::function<bool()>& should_stop = {});

/// The hidden command `pelago probe-device --job FILE --fleet FILE --device NAME --vocab-size V
/// [--core I]...`.
struct ProbeDeviceOptions {
  std::filesystem::path job, fleet;
  std::string device;
  int64_t vocab_size = 0;
  std::vector<int> cores;
};
/// Prints a Probe with one device as JSON on standard output. Returns the exit code.
int run_probe_device(const ProbeDeviceOptions& options);

}  // namespace pelago::train
