// What a line between two sites costs, and what an exchange of deltas puts on it.
#pragma once

#include "plan/cost/sizes.h"
#include "plan/plan.h"

namespace pelago::plan {

/// A line as a long message finds it. Our streams use BBR, which keeps its rate when packets are
/// lost, so what is lost is sent again and nothing else slows down; from a seventh on BBR gives way
/// too (draft-ietf-ccwg-bbr), and such a line is refused by read_fleet().
struct LineCosts {
  double byte_s = 0;       // from FleetLink::from to FleetLink::to, what is sent again included
  double byte_back_s = 0;  // the other way
  double way_s = 0;        // of the first byte: half a round trip
  /// Both ways at once, as exchanges go: the slower way counts.
  double slower_byte_s() const { return byte_s > byte_back_s ? byte_s : byte_back_s; }
};
LineCosts line_costs(const FleetLink& link);
/// What the first stage in front of this line waits for at the end of a step in step: a tied
/// embedding's gradients go both ways at once, then come the sums of whoever waited for them.
/// Without one the sums of the others are there before the first stage is done.
double step_end_s(const FleetLink& link, const ModelSizes& sizes);

/// What one exchange of a fragment asks of each line of a plan by rounds.
struct ExchangeCosts {
  double fragment_bytes = 0;  // of one site's delta of a fragment, quantised
  double line_bytes = 0;      // of that, what a line carries each way, deltas and means together
  double interval_s = 0;      // from the start of one exchange to that of the next
  double overlap_s = 0;       // that the sites compute meanwhile
  /// Until all members have committed: bytes, and three one-way trips (deltas, means, and the word
  /// that all have them).
  double seconds(const FleetLink& link) const;
};
/// Zero for a single site and for sites in step. Uses the slowest site's predicted_step_s.
ExchangeCosts exchange_costs(const Plan& plan);

}  // namespace pelago::plan
