// How long one step of a site takes, in virtual time: pipelines go forward and backward in 1F1B
// order (PipeDream-Flush, arXiv:2006.09503), hidden states and their gradients travel between
// stages, gradients are reduced while earlier blocks still go backward, and the optimizer runs when
// all of them are there. No arithmetic is done, nothing is random: the same costs give the same
// times.
//
// A device computes, copies to its host and copies from it at the same time, each in the order it
// was given; so a message costs the stages nothing unless they wait for it.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/plan.h"

namespace pelago::plan {

/// What a stage needs for a microbatch of n sequences.
struct StageCosts {
  LinearCost forward;
  LinearCost backward;                     // with recomputing, where the stage does that
  LinearCost forward_wait, backward_wait;  // of those, for ranks that share the stage's blocks
  LinearCost copy;        // of one message between the device and its host, either way
  LinearCost message;     // host to host, to or from the stage behind; many may be under way
  LinearCost line;        // of that: what one message takes of a line between sites, each way
  int64_t in_flight = 0;  // microbatches it keeps at most; 0: one for each stage from it on
  double update_s = 0;    // optimizer, when its gradients are there
  bool operator==(const StageCosts&) const = default;
};

/// sequences[i]: of microbatch i.
struct PipelineRun {
  std::vector<StageCosts> stages;
  std::vector<int64_t> sequences;
  bool operator==(const PipelineRun&) const = default;
};

struct PipelineTime {
  struct Stage {
    double busy_s = 0;           // computing
    double last_backward_s = 0;  // when the last microbatch's backward begins
    double end_s = 0;            // and when it ends
    int64_t in_flight_max = 0;   // microbatches that went forward and not yet backward
  };
  std::vector<Stage> stages;
  double end_s = 0;  // of the slowest stage
  /// The share of the devices' time in which they do not compute.
  double bubble() const;
};
PipelineTime simulate_pipeline(const PipelineRun& run);

/// One reduction among stages of several pipelines. It begins when all of them have the gradients
/// and are done with the reductions before it.
struct Reduction {
  struct Member {
    size_t pipeline_idx = 0;
    size_t stage_idx = 0;
    double ready_ratio = 1;  // of the last backward pass: 0 at its begin, 1 at its end
  };
  std::vector<Member> members;
  double seconds = 0;   // until the next one may begin
  double arrive_s = 0;  // until the sums are on the device, one reduction's behind another's, while
                        // the next one goes on
};

struct SiteRun {
  std::vector<PipelineRun> pipelines;
  std::vector<Reduction> reductions;  // in the order in which backward makes them ready
  double agree_s = 0;                 // the ranks agree on the norm of the gradient; first tokens
                                      // to the device, losses from it
  double gather_s = 0;                // weights of a sliced optimizer, after the update
};

struct SiteTime {
  std::vector<PipelineTime> pipelines;
  double reduced_s = 0;  // when all gradients are there
  double step_s = 0;
  /// Seconds of the step in which no pipeline computes and reductions are waited for.
  double reduction_wait_s = 0;
};
SiteTime simulate_site(const SiteRun& run);

/// The microbatches of a pipeline's share.
std::vector<int64_t> cut_microbatches(int64_t sequences, int64_t microbatch);

}  // namespace pelago::plan
