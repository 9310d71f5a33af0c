// How much of a vector is better not sent over the chips' own links. Two cards of a full mesh of
// eight have one seventh of their links between them, which is less than the way to the host. Both
// ways work at once, so the best is a mixture: some chunks go whole over the hosts, the others
// hierarchically. Pure; every rank must come to the same share.
#pragma once

#include <cstdint>
#include <span>

namespace pelago::chips {

/// The share is a multiple of 1/kShareParts, small enough to spread evenly over few chunks.
inline constexpr int kShareParts = 16;

/// What one rank has. Rates in bytes a second, one direction; 0: unknown, taken as no hindrance.
struct RankRates {
  int group_size = 1;
  double group_bytes_per_s = 0;  // to the others of its group together
  double host_bytes_per_s = 0;   // to its host, and as much back at the same time
};

/// Parts of kShareParts that go over the hosts, so that the slowest rank ends soonest. A byte over
/// the hosts passes each chip's host once; hierarchically, 1/s of it for a group of s, and the
/// group's links 2(s-1)/s of it (a reduce-scatter and an all-gather).
int best_host_parts(std::span<const RankRates> ranks);

/// Whether chunk chunk_idx goes over the hosts: the parts are spread evenly.
constexpr bool goes_over_hosts(int64_t chunk_idx, int host_parts) {
  return (chunk_idx + 1) * host_parts / kShareParts != chunk_idx * host_parts / kShareParts;
}

}  // namespace pelago::chips
