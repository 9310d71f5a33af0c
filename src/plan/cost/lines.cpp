#include "plan/cost/lines.h"

#include <algorithm>

#include "plan/across/joint.h"

namespace pelago::plan {

LineCosts line_costs(const FleetLink& link) {
  const double arrives = 1 - link.loss;
  const double back_mbit_s = link.back_mbit_s > 0 ? link.back_mbit_s : link.bandwidth_mbit_s;
  return {.byte_s = 8 / (link.bandwidth_mbit_s * 1e6 * arrives),
          .byte_back_s = 8 / (back_mbit_s * 1e6 * arrives),
          .way_s = link.rtt_ms / 2e3};
}

double step_end_s(const FleetLink& link, const ModelSizes& sizes) {
  if (!sizes.is_tied) return 0;
  const LineCosts line = line_costs(link);
  return 4 * sizes.vocab * sizes.hidden * line.slower_byte_s() + 2 * line.way_s;
}

double ExchangeCosts::seconds(const FleetLink& link) const {
  const LineCosts line = line_costs(link);
  return line_bytes * line.slower_byte_s() + 3 * line.way_s;
}

ExchangeCosts exchange_costs(const Plan& plan) {
  const SitesConfig& exchange = plan.exchange;
  ExchangeCosts costs;
  if (is_joint(plan) || exchange.fragments == 0) return costs;
  double step_s = 0;
  for (const SitePlan& site : plan.sites) step_s = std::max(step_s, site.predicted_step_s);
  const auto num_sites = static_cast<double>(plan.sites.size());
  const auto fragments = static_cast<double>(exchange.fragments);
  costs.fragment_bytes =
      delta_bytes(static_cast<double>(plan.num_parameters), exchange.delta_bits) / fragments;
  // Each site sends a slice of its delta to every other, and its slice of the mean to every other;
  // thin ones are not summed: all of every delta comes to every site.
  costs.line_bytes = costs.fragment_bytes * (exchange.delta_bits == 2 ? 1 : 2 / num_sites);
  costs.interval_s = step_s * static_cast<double>(exchange.inner_steps) / fragments;
  costs.overlap_s = step_s * static_cast<double>(exchange.overlap_steps);
  return costs;
}

}  // namespace pelago::plan
