// How long a collective occupies the links of the real chips. Pure arithmetic.
//
// Bytes: every rank sends 2(R-1)/R of the vector in an all-reduce and half of that in a
// reduce-scatter or an all-gather, the least there is, whether round a ring or to all others at
// once over a full mesh (Thakur, Rabenseifner, Gropp 2005). Hops: R-1 a pass round a ring, one over
// a mesh. A broadcast is a pipelined chain, or over a mesh a scatter and an all-gather if that is
// shorter.
#pragma once

#include <algorithm>
#include <cstdint>

#include "chips/emuccl/emuccl.h"

namespace pelago::emuccl {

enum class Kind : uint32_t { kAllReduce = 1, kReduceScatter = 2, kAllGather = 3, kBroadcast = 4 };

/// num_bytes: of the whole vector. Seconds on the real chip; 0 if the config knows no rate.
inline double collective_s(Kind kind, int num_ranks, double num_bytes, const emucclConfig& links) {
  if (num_ranks == 1 || links.group_bytes_per_s <= 0) return 0;
  const double others = num_ranks - 1;
  const double pass_s = others / num_ranks * num_bytes / links.group_bytes_per_s +
                        links.latency_s * (links.is_mesh != 0 ? 1 : others);
  if (kind == Kind::kAllReduce) return 2 * pass_s;
  if (kind != Kind::kBroadcast) return pass_s;
  const double pair_bytes_per_s =
      links.pair_bytes_per_s > 0 ? links.pair_bytes_per_s : links.group_bytes_per_s;
  if (links.is_mesh != 0) {
    return std::min(2 * pass_s, num_bytes / pair_bytes_per_s + links.latency_s);
  }
  return num_bytes / pair_bytes_per_s + links.latency_s * others;
}

inline double message_s(double num_bytes, const emucclConfig& links) {
  const double bytes_per_s =
      links.pair_bytes_per_s > 0 ? links.pair_bytes_per_s : links.group_bytes_per_s;
  return bytes_per_s > 0 ? num_bytes / bytes_per_s + links.latency_s : 0;
}

}  // namespace pelago::emuccl
