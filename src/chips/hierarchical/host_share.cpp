#include "chips/hierarchical/host_share.h"

#include <algorithm>

namespace pelago::chips {
namespace {

double seconds_over(double bytes, double bytes_per_s) {
  return bytes_per_s > 0 ? bytes / bytes_per_s : 0;
}

/// Of a vector of one byte.
double slowest_s(std::span<const RankRates> ranks, int host_parts) {
  const double over_hosts = static_cast<double>(host_parts) / kShareParts;
  double slowest = 0;
  for (const RankRates& rank : ranks) {
    const double size = rank.group_size;
    const double host_s = seconds_over(over_hosts + (1 - over_hosts) / size, rank.host_bytes_per_s);
    const double links_s =
        seconds_over((1 - over_hosts) * 2 * (size - 1) / size, rank.group_bytes_per_s);
    slowest = std::max({slowest, host_s, links_s});
  }
  return slowest;
}

}  // namespace

int best_host_parts(std::span<const RankRates> ranks) {
  int best = 0;
  for (int parts = 1; parts <= kShareParts; ++parts) {
    if (slowest_s(ranks, parts) < slowest_s(ranks, best)) best = parts;
  }
  return best;
}

}  // namespace pelago::chips
