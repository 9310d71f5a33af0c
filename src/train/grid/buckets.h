// Which gradients are added up among whom. The ranks that hold a block, in whichever pipelines,
// form a group; neighbouring blocks with one group share a bucket, so that few large reductions do
// the work of many small ones. With tensor parallelism of unlike widths a matrix falls apart into
// the pieces on which all holders agree, and each piece goes to its own group.
//
// Every rank computes the same list from the plan, in the order in which backward fills buckets:
// the head first, the embedding last. Reductions that follow this order cannot wait for each other
// in a circle.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "chips/tensor.h"
#include "model/config.h"
#include "model/parts/part.h"
#include "plan/plan.h"

namespace pelago::train {

/// A rectangle of one parameter, as this rank holds it and as the model's flat vector has it. Its
/// values count row by row.
struct Piece {
  int64_t offset = 0;  // of its first value in the bucket
  int64_t num_rows = 0;
  int64_t num_columns = 0;
  int64_t local_begin = 0;   // of its first value in the rank's flat vector
  int64_t local_stride = 0;  // from row to row
  int64_t global_begin = 0;  // the same in the model's flat vector
  int64_t global_stride = 0;
  bool decays = true;
  int64_t matrix_rows = 0;  // of a block's matrix that is here whole, row behind row; 0: it is
                            // another parameter, or a part of a matrix
  int64_t num_values() const { return num_rows * num_columns; }
};

struct Bucket {
  std::vector<int> ranks;     // who holds it, in rank order
  int64_t lowest_unit = 0;    // whole once backward has done this unit (model::Stage)
  std::vector<Piece> pieces;  // in the model's order; offsets follow one another
  int64_t num_values = 0;
  /// Begin of the bucket in the rank's flat vector, where its values lie as in the bucket; -1: they
  /// are scattered.
  int64_t local_begin = -1;
};

/// Values that one call of the optimizer takes: neighbours that decay alike, or with Muon a matrix
/// of a block. Offsets in the bucket.
struct UpdateRun {
  int64_t begin = 0;
  int64_t end = 0;
  bool decays = true;
  int64_t matrix_rows = 0;  // 0: AdamW
};
struct UpdateRange {
  int64_t begin = 0, end = 0;  // in the bucket
  bool has_muon = false;       // then no matrix is cut
};
std::vector<UpdateRun> update_runs(const Bucket& bucket, const UpdateRange& range);

/// The part of the model that a rank of this site holds.
model::ModelPart part_of(const plan::SitePlan& site, int64_t num_blocks, int rank);

struct SiteBuckets {
  std::vector<Bucket> own;               // those that the rank holds, in order
  std::vector<std::vector<int>> groups;  // every distinct set of holders in the site, in order
};
/// bucket_values: neighbours are joined up to this many values.
SiteBuckets buckets_of(const model::ModelConfig& config,
                       const plan::SitePlan& site,
                       int rank,
                       int64_t bucket_values);

/// Calls visit(offset, global_begin, length) for every run of the bucket that lies within
/// [global_begin, global_end) of the model's flat vector and [begin, end) of the bucket.
struct RunFilter {
  int64_t begin = 0, end = 0;                // in the bucket
  int64_t global_begin = 0, global_end = 0;  // in the model's flat vector
};
void for_each_run(const Bucket& bucket,
                  const RunFilter& filter,
                  const std::function<void(int64_t, int64_t, int64_t)>& visit);

/// The bucket's values as one contiguous tensor [num_values]: a view of flat where they lie so,
/// else a copy.
Tensor gather_bucket(const Bucket& bucket, const Tensor& flat);
/// Puts them back; nothing to do for a view.
void scatter_bucket(const Bucket& bucket, const Tensor& values, Tensor& flat);

}  // namespace pelago::train
