// Which devices of a fleet to use. The fastest plan takes all of them; one that is to spare energy
// or money, or may draw only so much, leaves some free. Fleets of fewer devices are planned, each
// kind of each site by number, whole nodes first: of few devices all such fleets, of many some
// thirty (climb.h).
#pragma once

#include <string>

#include "plan/plan.h"

namespace pelago::plan {

struct ChosenFleet {
  FleetConfig fleet;
  Plan plan;              // of that fleet
  std::string left_free;  // part_of_fleet.h has the words; empty: nothing is
  int64_t num_plans = 0;  // that were made to find it
};

/// By job.aim; its objective counts what sites wait for their lines. The same input gives the same
/// fleet. Throws Failure (exit 2) in one line: a power or a price that is not known, a chip to keep
/// free that the fleet lacks, a limit that no plan keeps (and what the nearest plan would need), or
/// what make_plan() says of the whole fleet.
ChosenFleet choose_devices(const JobConfig& job,
                           const FleetConfig& fleet,
                           const chips::Catalogue& catalogue,
                           const Probe* probe,
                           double host_cores);

}  // namespace pelago::plan
