// A site's steps at a size that a page can draw, however long the run. Steps are gathered in
// buckets of `stride` steps; when there are too many buckets, neighbours are joined and the stride
// doubles, so memory and answers stay bounded while each line of metrics.jsonl is read once. A
// resumed run repeats the steps after its checkpoint: of two lines for one step the later counts,
// so buckets from that step on are given up (of one that holds earlier steps too, its fair part
// stays).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pelago::serve {

/// Sums over the steps of a bucket, or of the whole run.
struct RankSums {
  std::string device;
  double tokens = 0;
  double compute_s = 0;
  double wait_stages_s = 0;
  double wait_ranks_s = 0;
  double late_s = 0;
  double host_busy_s = 0;
  double peak_memory_bytes = 0;  // the largest
};

struct StepSums {
  double num_steps = 0;
  int64_t first_step = 0;
  int64_t last_step = 0;
  double time_s = 0;          // unix, of the last step
  double loss_tokens = 0;     // sum of loss * tokens, over steps with a finite loss
  double counted_tokens = 0;  // tokens of those
  double grad_norm = 0;
  double lr = 0;  // of the last step
  double tokens = 0;
  double step_s = 0;
  double wait_line_s = 0;
  double reduce_s = 0;
  double skipped = 0;
  std::vector<RankSums> ranks;  // by rank

  void add(const StepSums& other);
  /// Keeps this share of all sums.
  void scale(double share);
};

class StepSeries {
 public:
  explicit StepSeries(size_t num_buckets_max) : num_buckets_max_(num_buckets_max) {}

  /// A step that was just read. version: when, for changed_since().
  void add(const StepSums& step, uint64_t version);

  const StepSums& totals() const { return totals_; }
  const std::vector<StepSums>& buckets() const { return buckets_; }
  int64_t stride() const { return stride_; }
  /// The first bucket that changed after that version; num buckets: none did.
  size_t changed_since(uint64_t version) const;
  /// Steps that were read a second time, or more often.
  int64_t num_repeated() const { return num_repeated_; }

 private:
  void give_up_from(int64_t step, uint64_t version);
  void join_neighbours(uint64_t version);

  size_t num_buckets_max_;
  int64_t stride_ = 1;
  std::vector<StepSums> buckets_;
  std::vector<uint64_t> changed_;  // by bucket: the version that touched it last
  StepSums totals_;                // of all that was read, repeated steps counted again
  int64_t num_repeated_ = 0;
};

}  // namespace pelago::serve
