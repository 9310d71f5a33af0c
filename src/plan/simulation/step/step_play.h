// One optimizer step of a site, event by event: every microbatch of every stage, the copies and
// messages between stages, lines that pipelines share, buckets of gradients that are added up while
// earlier blocks still go backward. pipeline_time.h plays one step of alike devices without events,
// which is what a search can afford; here devices may be slow by themselves, from step to step, and
// copies of one device wait for each other.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "plan/pipeline_time.h"
#include "plan/simulation/event_queue.h"
#include "plan/simulation/output/trace.h"

namespace pelago::plan {

/// Where a step's spans go: a track a stage, in the order of StepPlay's stages.
struct StepTracks {
  Trace* trace = nullptr;
  std::vector<uint32_t> stages;
  std::vector<uint32_t> reductions;  // by stage: of the buckets that it is the first to join
};

/// Seconds of all stages together add up to num_stages * step_s.
struct StepOutcome {
  double step_s = 0;
  double compute_s = 0;  // forward and backward
  double bubble_s = 0;   // waiting for hidden states and their gradients
  double reduce_s = 0;   // done going backward, waiting for sums
  double update_s = 0;   // the norm, the optimizer, gathered weights
};

class StepPlay {
 public:
  /// line_of[pipeline][stage]: the line between sites behind this stage, -1 for none; empty: no
  /// lines. Pipelines take turns on a line, each way by itself.
  explicit StepPlay(const SiteRun& run, const std::vector<std::vector<int>>& line_of = {});

  size_t num_stages() const { return stages_.size(); }
  /// factors: by stage, pipeline after pipeline, how many times longer it computes; empty: 1.
  /// begin_s: where the step's spans begin in the trace.
  StepOutcome play(std::span<const double> factors = {},
                   const StepTracks* tracks = nullptr,
                   double begin_s = 0);
  uint64_t num_events() const { return queue_.num_popped(); }

 private:
  enum Kind : uint32_t { kComputed, kAtLine, kAtHost, kOnDevice, kReady, kReduced };
  static constexpr uint32_t kBack = 1;  // Event::what: gradients on their way back; 0: forward

  struct Stage {
    uint32_t pipeline_idx = 0;
    bool has_next = false, has_previous = false;
    int32_t line = -1;  // behind it
    int64_t num_ahead = 0, num_microbatches = 0;
    StageCosts costs;
    // Of this step.
    int64_t turn = 0, num_hidden = 0, num_gradients = 0;
    bool is_busy = false;
    double begun_s = 0, busy_s = 0, end_s = 0;
    double copying_out_s = 0, copying_in_s = 0;  // until when
    double sums_in_s = 0;                        // sums of gradients, likewise
    double last_backward_s = 0, last_end_s = 0;
    uint32_t next_reduction = 0;  // of its own
    bool has_offered = false;
  };
  struct Bucket {
    std::vector<uint32_t> stages;
    double seconds = 0, arrive_s = 0;
    uint32_t num_missing = 0;
    double begun_s = 0;
  };
  struct Joined {
    uint32_t bucket = 0;
    double ready_ratio = 1;
  };

  void reset();
  void begin_turn(uint32_t idx);
  void end_turn(uint32_t idx);
  void send(uint32_t from, bool is_back, int64_t microbatch);
  void at_line(uint32_t from, bool is_back, int64_t microbatch);
  void at_host(uint32_t to, bool is_back, int64_t microbatch);
  void offer(uint32_t idx);
  void join(uint32_t idx);
  void end_bucket(uint32_t bucket_idx);
  void add_span(uint32_t idx, bool is_forward, int64_t microbatch);
  double sequences(const Stage& stage, int64_t microbatch) const {
    return sequences_[stage.pipeline_idx][static_cast<size_t>(microbatch)];
  }

  std::vector<Stage> stages_;
  std::vector<std::vector<double>> sequences_;  // by pipeline
  std::vector<Bucket> buckets_;
  std::vector<std::vector<Joined>> joined_;  // by stage, in order
  std::vector<double> line_free_s_;          // two a line: onwards, back
  double agree_s_ = 0, gather_s_ = 0, update_s_ = 0;
  EventQueue queue_;
  std::span<const double> factors_;
  const StepTracks* tracks_ = nullptr;
  double trace_begin_s_ = 0, now_s_ = 0, reduced_s_ = 0;
};

}  // namespace pelago::plan
