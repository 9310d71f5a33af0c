// Which line of the plan lies between two ends of the transport.
#pragma once

#include <optional>
#include <string>

#include "plan/plan.h"
#include "sites/transport/emulated_line.h"

namespace pelago::sites {

/// The line from one end to another if the plan emulates it. The coordinator stands in the first
/// site. Nothing for a real line or for two ends in one site.
std::optional<LineOptions> emulated_line(const plan::Plan& plan,
                                         const std::string& from,
                                         const std::string& to);

/// The plan's bandwidth of a real line from one site to another; nothing where the line is emulated
/// or the plan knows none.
std::optional<double> real_bandwidth_mbit_s(const plan::Plan& plan,
                                            const std::string& from,
                                            const std::string& to);

/// Longest time that an exchange may take over the plan's slowest line before a site is taken for
/// late: four times what its bytes need, but never so short that a hiccup counts.
double exchange_limit_s(const plan::Plan& plan);

}  // namespace pelago::sites
