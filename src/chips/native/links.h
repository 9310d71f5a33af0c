// How fast the chips of one vendor group reach one another.
#pragma once

namespace pelago::chips::native {

/// What the emulated chips' clocks are charged for, and what decides how much of a vector takes
/// these links (hierarchical/host_share.h). Zero: unknown; nothing is charged, and all of it does.
struct Links {
  double group_bytes_per_s = 0;  // that a chip sends to all others of its group together
  double pair_bytes_per_s = 0;   // that it sends to one other
  double latency_s = 5e-6;       // of one hop
  bool is_mesh = false;          // every pair has a link of its own
};

}  // namespace pelago::chips::native
