// Which samples the run has spent. Sample i of the run is a keyed permutation of the corpus
// (data::SampleOrder). Each site reads a lane of its own: of every batch of all sites, its share of
// the sequences. A lane is counted in data steps: data step t of a site are the samples
// [t * batch + first, t * batch + first + share), with the shares of that data step
// (lane_shares.h). A lease is a lane from a data step on; it is held
// by one start of the site and ends with it. A data step is spent when a commit contains a delta
// that it went into; what a start that died had read beyond that returns to the lane, and the next
// start reads it again. So every sample is trained once a pass, or stands here:
//   partly    spent, but the site died before every fragment's delta with it was committed
//   repeated  in two committed deltas of one fragment: never, unless something is broken
//   lost      skipped: a later lease began behind it
//   returned  was read by a start that died, and has gone back: work lost, not samples
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sites/leases/lane_shares.h"
#include "sites/leases/range_set.h"

namespace pelago::sites {

/// Of one lane, in sequences.
struct LaneAccount {
  int64_t spent = 0;
  int64_t partly = 0;  // of spent
  int64_t repeated = 0;
  int64_t lost = 0;
  int64_t returned = 0;
  int64_t in_hand = 0;  // read by the start that lives, not yet in a commit
};

class TokenLedger {
 public:
  TokenLedger(LaneShares shares, int64_t num_fragments);

  const LaneShares& shares() const { return shares_; }
  /// New shares, of data steps that nobody has read.
  Status change_shares(const ShareChange& change) { return shares_.add(change); }

  /// A committed delta of this fragment contained these data steps. Bounds are the caller's to
  /// check.
  void spend(size_t lane, int64_t fragment, StepRange range);
  /// How many of these data steps this fragment has had before.
  int64_t num_spent(size_t lane, int64_t fragment, StepRange range) const;
  /// Where a new lease of the lane begins: behind everything spent.
  int64_t next_data_step(size_t lane) const;
  /// lease_begin: of the newest lease; read_end: one past the last data step that its holder read.
  LaneAccount account(size_t lane, int64_t lease_begin, int64_t read_end) const;

 private:
  struct Lane {
    std::vector<RangeSet> fragments;  // spent, by fragment
    RangeSet any;                     // by at least one
    int64_t repeated = 0;             // in sequences
  };
  LaneShares shares_;
  std::vector<Lane> lanes_;
};

}  // namespace pelago::sites
