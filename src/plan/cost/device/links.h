// What moves bytes besides a device's own computing: its links to its host and to its like, and the
// transport between hosts.
#pragma once

#include "chips/catalogue.h"

namespace pelago::plan {

/// Fixed and per-byte seconds of a real chip.
struct LinkCosts {
  double host_byte_s = 0;   // between its memory and its host's, each way
  double host_copy_s = 0;   // of one copy, however short
  double group_call_s = 0;  // of one collective of two, with what starts it
  double group_hop_s = 0;   // more for each further member
  double group_byte_s = 0;  // to all others of its kind in its node together
  double pair_byte_s = 0;   // to one of them, in a mesh; elsewhere 0
};
/// chip: null for a processor, whose memory is its host's. num_cards: of its kind in its node.
LinkCosts link_costs(const chips::Chip* chip, int num_cards);

/// Between two hosts' memories, or two workers of one host.
struct TransportCosts {
  double byte_s = 0;
  double message_s = 0;
};
/// on_this_machine: the workers share it, as emulated ones do.
TransportCosts transport_costs(bool on_this_machine);
/// Between two unlike ends.
TransportCosts slower_of(const TransportCosts& one, const TransportCosts& other);

}  // namespace pelago::plan
