// What can make a plan impossible or unwise, apart from its shares: a chip's memory, the host that
// emulates, the lines between sites.
#pragma once

#include "chips/catalogue.h"
#include "plan/fleet.h"
#include "plan/job.h"
#include "plan/plan.h"

namespace pelago::plan {

/// The largest microbatch up to the job's that fits into the device. Throws Failure (exit 2) naming
/// the chip, what is missing and the largest preset that would fit if not even one sequence does.
int64_t largest_microbatch(const std::string& device,
                           const std::string& site,
                           double memory_bytes,
                           const JobConfig& job);

/// Fills host_load. With measured figures: throws Failure (exit 2) with the slowdown that would do
/// if emulation needs more than 0.85 of the host's processors; the rest is for transport,
/// reductions and the system. Warns if one processor alone is overloaded.
void check_host(const Probe* probe, Plan& plan);

/// Fills predicted_line_mbit_s; warns of each line that cannot carry the exchanges in the time that
/// the schedule gives them.
void check_lines(Plan& plan);

}  // namespace pelago::plan
