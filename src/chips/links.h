// How fast a chip reaches others of its kind in its node, and the host. Arithmetic on the catalogue
// only, so the planner reads it too. Every rate is bytes a second in one direction, as large
// messages get; the catalogue's link figures count both directions.
#pragma once

#include "chips/catalogue.h"

namespace pelago::chips {

enum class LinkTopology {
  kSwitched,   // any pair gets all of a card's links: NVSwitch, optical switches
  kMesh,       // every pair has links of its own: a pair gets one share of them
  kHost,       // over PCIe from card to card
  kHostMemory  // over PCIe through the host's memory: no path from card to card
};

/// What the catalogue's words say; where they say nothing of a module's links, a mesh, and of a
/// PCIe card's, kHost.
LinkTopology link_topology(const Chip& chip);

/// Cards that a mesh joins: 8 unless the catalogue says otherwise.
int mesh_cards(const Chip& chip);

/// From one card to one other while the others rest. cards_in_node >= 2.
double pair_bytes_per_s(const Chip& chip, int cards_in_node);

/// What each card of a group sends to all others of the group together, all at once, as in a
/// reduction: an all-reduce of B bytes takes 2 (k-1)/k B over this. group_size >= 2.
double group_bytes_per_s(const Chip& chip, int group_size, int cards_in_node);

/// Between a card and the host, each way.
double host_bytes_per_s(const Chip& chip);

}  // namespace pelago::chips
