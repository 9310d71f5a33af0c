#include "plan/cost/device/links.h"

#include <algorithm>

#include "chips/links.h"

namespace pelago::plan {

namespace {

/// What a collective takes before its bytes count, by how the cards are joined. Rings go from card
/// to card; in a mesh all reach all in one hop (as HCCL's mesh of a 910B server does); through the
/// host's memory a hop is two copies.
/// Figures: NCCL's own model of its rings for long messages, 8.4 us to start, 3.4 us a hop over a
/// chip's links, 5.7 us over PCIe (github.com/NVIDIA/nccl src/graph/tuning.cc: baseLat, hwLat,
/// Ring/Simple). Other vendors publish none; RCCL's table has 3.6 and 5.7 us.
struct CallCosts {
  double two_s = 0, hop_s = 0;
};
CallCosts call_costs(const chips::Chip& chip, int num_cards) {
  constexpr double kStartS = 8.4e-6, kLinkHopS = 3.4e-6, kPcieHopS = 5.7e-6;
  switch (chips::link_topology(chip)) {
    case chips::LinkTopology::kSwitched:
      return {kStartS + kLinkHopS, kLinkHopS};
    case chips::LinkTopology::kMesh:
      if (num_cards > chips::mesh_cards(chip)) break;  // some pairs have the host alone
      return {kStartS + kLinkHopS, 0};
    case chips::LinkTopology::kHost:
      break;
    case chips::LinkTopology::kHostMemory:
      return {kStartS + 2 * kPcieHopS, 2 * kPcieHopS};
  }
  return {kStartS + kPcieHopS, kPcieHopS};
}

}  // namespace

LinkCosts link_costs(const chips::Chip* chip, int num_cards) {
  if (chip == nullptr) {
    LinkCosts processor;
    processor.host_byte_s = processor.group_byte_s = 1 / 10e9;
    processor.group_call_s = 60e-6;
    return processor;
  }
  constexpr double kCopyS = 5e-6;  // as small copies from pinned memory take on PCIe
  LinkCosts costs;
  costs.host_byte_s = 1 / chips::host_bytes_per_s(*chip);
  costs.host_copy_s = kCopyS;
  costs.group_byte_s = costs.host_byte_s;
  const CallCosts calls = call_costs(*chip, num_cards);
  costs.group_call_s = calls.two_s;
  costs.group_hop_s = calls.hop_s;
  if (num_cards < 2) return costs;
  costs.group_byte_s = 1 / chips::group_bytes_per_s(*chip, num_cards, num_cards);
  const bool is_mesh = chips::link_topology(*chip) == chips::LinkTopology::kMesh &&
                       num_cards <= chips::mesh_cards(*chip);
  if (is_mesh) costs.pair_byte_s = 1 / chips::pair_bytes_per_s(*chip, num_cards);
  return costs;
}

TransportCosts transport_costs(bool on_this_machine) {
  // Measured between two processes of one machine over UCX with direct copies: 40 MB summed in
  // 20 ms, 50 to 65 us for a few bytes. Between nodes: 100 Gbit/s RDMA.
  return on_this_machine ? TransportCosts{.byte_s = 1 / 2e9, .message_s = 60e-6}
                         : TransportCosts{.byte_s = 1 / 11e9, .message_s = 10e-6};
}

TransportCosts slower_of(const TransportCosts& one, const TransportCosts& other) {
  return {.byte_s = std::max(one.byte_s, other.byte_s),
          .message_s = std::max(one.message_s, other.message_s)};
}

}  // namespace pelago::plan
