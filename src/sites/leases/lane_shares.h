// Who takes which samples of a batch, as a function of the data step alone. The plan says it from
// data step 0 on; when the sites' speeds have drifted, new shares hold from a later data step on.
// Sites count data steps each by itself (a site that lost starts is behind), so new shares hold
// from a data step, not from a moment: no sample is then in two lanes or in none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"
#include "sites/leases/range_set.h"

namespace pelago::sites {

/// From this data step on, each lane takes so many sequences of a batch.
struct ShareChange {
  int64_t data_step = 0;
  std::vector<int64_t> sequences;  // by lane
};

class LaneShares {
 public:
  /// sequences: the plan's, by lane.
  explicit LaneShares(std::vector<int64_t> sequences)
      : changes_{{.data_step = 0, .sequences = std::move(sequences)}} {}

  /// kCorrupt if it does not come after the last one, or is not of the same lanes and batch.
  Status add(const ShareChange& change);
  /// Those that hold from a data step below this one on stay; those after go.
  void forget_from(int64_t data_step);

  const ShareChange& at(int64_t data_step) const;
  const ShareChange& newest() const { return changes_.back(); }
  /// Without the plan's own; in the order in which they hold.
  std::span<const ShareChange> changes() const { return std::span(changes_).subspan(1); }
  /// Sequences of a lane in these data steps.
  int64_t count(size_t lane, StepRange range) const;
  int64_t count(size_t lane, const RangeSet& steps) const;

 private:
  StepRange steps_of(size_t change_idx) const;
  std::vector<ShareChange> changes_;  // the first is the plan's
};

}  // namespace pelago::sites
