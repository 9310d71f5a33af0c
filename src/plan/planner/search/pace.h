// How long a pipeline takes for its share of a batch, in a closed form that a search can afford.
//
// A microbatch's way through all stages and back is paid once; after that one leaves every period,
// which the slowest stage decides, or the slowest round trip: stage s keeps at most S - s
// microbatches under way, so so many leave it in the time that one needs to come back. For stages
// of one pace this is (m + S - 1) (forward + backward), the time of 1F1B; pipeline_time.h plays
// unlike ones exactly.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/pipeline_time.h"
#include "plan/plan.h"

namespace pelago::plan {

struct Pace {
  LinearCost latency;               // of one microbatch, there and back
  std::vector<LinearCost> periods;  // the largest counts; each as a function of the microbatch
  double step_s = 0;                // once a step
  int64_t microbatch_max = 1;       // sequences of the largest microbatch
  bool is_exact = false;            // and of all but a share's last, as the job asks
  /// Of shares of 1, 2, ... sequences, played through instead of estimated, without step_s.
  struct Played {
    double seconds = 0;
    int64_t microbatch = 1;
  };
  std::vector<Played> played;

  /// Of one microbatch after another.
  double period_s(double sequences) const;
  /// Of so many sequences in microbatches of one size, the last smaller.
  double time_s(int64_t sequences, int64_t microbatch) const;
  /// The same with the best microbatch. Never less for more sequences.
  double time_s(int64_t sequences) const;
  /// The microbatch that time_s() takes: of equals the largest, in equal cuts.
  int64_t best_microbatch(int64_t sequences) const;
};

/// microbatch_max: that memory allows. step_s: optimizer, reductions.
Pace pace_of(const std::vector<StageCosts>& stages, int64_t microbatch_max, double step_s);

}  // namespace pelago::plan
