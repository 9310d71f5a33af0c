// How fast a chip's bytes reach its host and the other chips of its node, each way.
#pragma once

#include "chips/catalogue.h"

namespace pelago::plan {

struct LinkRates {
  double host_bytes_s = 0;
  double group_bytes_s = 0;  // to all others of its node together
};
/// chip: null for a processor, whose memory is its host's.
LinkRates link_rates(const chips::Chip* chip);

/// Between two hosts' memories, or two workers of one host.
struct TransportRates {
  double byte_s = 0;
  double message_s = 0;
};
/// on_this_machine: the workers share it, as emulated ones do.
TransportRates transport_rates(bool on_this_machine);

}  // namespace pelago::plan
