#include "plan/planner/cost/links.h"

#include <algorithm>

namespace pelago::plan {

LinkRates link_rates(const chips::Chip* chip) {
  if (chip == nullptr) return {.host_bytes_s = 10e9, .group_bytes_s = 10e9};
  // PCIe 4 x16, as pinned copies use it; chips since 2022 mostly sit on PCIe 5.
  const double host_bytes_s = chip->year >= 2022 ? 50e9 : 25e9;
  // The catalogue counts both directions of a link.
  const double link_bytes_s = chip->link_gb_s > 0 ? chip->link_gb_s * 1e9 / 2 : host_bytes_s;
  return {.host_bytes_s = host_bytes_s, .group_bytes_s = link_bytes_s};
}

TransportRates transport_rates(bool on_this_machine) {
  // Measured between two processes of one machine over UCX with direct copies: 40 MB summed in
  // 20 ms, 50 to 65 us for a few bytes. Between nodes: 100 Gbit/s RDMA.
  return on_this_machine ? TransportRates{.byte_s = 1 / 2e9, .message_s = 60e-6}
                         : TransportRates{.byte_s = 1 / 11e9, .message_s = 10e-6};
}

}  // namespace pelago::plan
