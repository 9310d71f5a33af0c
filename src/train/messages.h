// What a site's workers and their supervisor tell each other, and when weights cross the site's
// border. A worker is a child process with one end of a SOCK_SEQPACKET pair as descriptor 3; a
// message is one packet of JSON. Weights do not go through it: they lie in shared memory
// (SharedWeights).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/cost/parts.h"

namespace pelago::train {

/// A range of the flat parameter vector that is exchanged as one, cut at tensor borders.
struct Fragment {
  int64_t begin = 0;
  int64_t end = 0;
};

/// When fragments leave and come back, as a function of the number of completed steps and nothing
/// else: sites that follow it agree without talking. Exchange k takes fragment k mod P, its
/// snapshot after (k+1)*H/P completed steps; the merge comes tau steps later. After the last step
/// each fragment is exchanged once more, waited for, and taken whole.
struct ExchangeSchedule {
  int64_t inner_steps = 0;    // H; a multiple of num_fragments
  int64_t num_fragments = 0;  // P; 0: the site trains alone and exchanges nothing
  int64_t overlap_steps = 0;  // tau; smaller than H/P
  int64_t num_steps = 0;      // of the run

  int64_t interval() const { return num_fragments == 0 ? 0 : inner_steps / num_fragments; }
  /// The exchange whose snapshot is due after this many completed steps; -1: none.
  int64_t snapshot_after(int64_t completed_steps) const;
  /// The exchange whose merge is due after this many completed steps; -1: none.
  int64_t merge_after(int64_t completed_steps) const;
  /// True if no exchange is in flight then: checkpoints and stops happen only at quiet steps.
  bool is_quiet(int64_t completed_steps) const;
  /// True at the first quiet step at or after each multiple of every_steps; 0: never.
  bool is_checkpoint_step(int64_t completed_steps, int64_t every_steps) const;
  /// Regular exchanges of the whole run (those whose merge falls into it); the final ones are
  /// num_regular() + fragment.
  int64_t num_regular() const;
  /// The quiet step at which a site that joins for exchange_idx + 1 starts.
  int64_t first_step_after(int64_t exchange_idx) const;
};

/// One device's part of a step.
struct RankReport {
  std::string device;
  int64_t tokens = 0;
  double compute_s = 0;      // forward, backward, and the update of the step before
  double wait_stages_s = 0;  // for hidden states and gradients of other stages
  double wait_ranks_s = 0;   // for slower ranks and the reduction, in the step before
  double late_s = 0;         // emulated: time by which the host failed to keep the chip's pace
  double host_busy_s = 0;    // emulated: time the host computed for this chip
  int64_t peak_memory_bytes = 0;
  /// Reduction and optimizer are those of the step before; line_s is what else step_s has. Of a
  /// chip that is given work ahead of time and has no clock of its own, forward is in backward.
  plan::PartSeconds parts = {};
};

/// One optimizer step of a site.
struct StepReport {
  std::string site;
  int64_t step = 0;  // completed steps, 1 after the first
  double loss = 0;   // nats a token, mean over the site's tokens of this step
  double grad_norm = 0;
  double lr = 0;
  int64_t tokens = 0;
  double step_s = 0;
  double wait_line_s = 0;  // of step_s: waiting for a merge that had not come
  double reduce_s = 0;
  bool skipped = false;  // the gradient was not finite and was applied nowhere
  int64_t left_out = 0;  // steps that this start of the site has left out so far: not trained
  std::vector<RankReport> ranks;
};

struct EvaluationReport {
  std::string site;
  int64_t step = 0;
  double loss = 0;  // nats a token on the held-out split
  double bits_per_byte = 0;
  int64_t tokens = 0;
};

std::string to_json(const StepReport& report);
std::string to_json(const EvaluationReport& report);
StepReport step_report_from_json(const std::string& json);
EvaluationReport evaluation_report_from_json(const std::string& json);

}  // namespace pelago::train
