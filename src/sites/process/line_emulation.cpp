#include "sites/process/line_emulation.h"

#include <algorithm>

#include "sites/transport/transport.h"

namespace pelago::sites {

std::optional<LineOptions> emulated_line(const plan::Plan& plan,
                                         const std::string& from,
                                         const std::string& to) {
  const auto place_of = [&](const std::string& end) {
    return end == kCoordinatorName ? plan.sites.front().name : end;
  };
  const std::string here = place_of(from), there = place_of(to);
  for (const plan::FleetLink& link : plan.links) {
    const bool joins =
        (link.from == here && link.to == there) || (link.from == there && link.to == here);
    if (joins && link.emulate) {
      return LineOptions{.bandwidth_mbit_s = link.bandwidth_mbit_s, .rtt_ms = link.rtt_ms};
    }
  }
  return std::nullopt;
}

std::optional<double> real_bandwidth_mbit_s(const plan::Plan& plan,
                                            const std::string& from,
                                            const std::string& to) {
  for (const plan::FleetLink& link : plan.links) {
    const bool joins = (link.from == from && link.to == to) || (link.from == to && link.to == from);
    if (joins && !link.emulate) return link.bandwidth_mbit_s;
  }
  return std::nullopt;
}

double exchange_limit_s(const plan::Plan& plan) {
  double slowest_mbit_s = 1e6;
  for (const plan::FleetLink& link : plan.links) {
    slowest_mbit_s = std::min(slowest_mbit_s, link.bandwidth_mbit_s);
  }
  const double values = static_cast<double>(plan.num_parameters) /
                        static_cast<double>(std::max<int64_t>(plan.exchange.fragments, 1));
  const double megabits = 8 * 2 * plan::delta_bytes(values, plan.exchange.delta_bits) / 1e6;
  return std::max({30.0, 3 * plan.exchange.grace_s, 4 * megabits / slowest_mbit_s});
}

}  // namespace pelago::sites
