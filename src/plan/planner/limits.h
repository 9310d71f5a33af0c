// What can make a plan impossible or unwise, apart from its shares: a site's memory, the host that
// emulates, the lines between sites.
#pragma once

#include "plan/job.h"
#include "plan/plan.h"
#include "plan/planner/problem.h"

namespace pelago::plan {

/// Throws Failure (exit 2): what the site's devices have, what the model needs even with one
/// sequence at a time and recomputing, and the largest preset that would fit.
[[noreturn]] void refuse_large_model(const std::string& site,
                                     const SiteProblem& problem,
                                     const JobConfig& job);

/// Fills host_load. With measured figures: throws Failure (exit 2) with the slowdown that would do
/// if emulation needs more than 0.85 of the host's processors; the rest is for transport,
/// reductions and the system. Warns if one processor alone is overloaded.
void check_host(Plan& plan);

/// Fills predicted_line_mbit_s; warns of each line that cannot carry the exchanges in the time that
/// the schedule gives them.
void check_lines(Plan& plan);

}  // namespace pelago::plan
