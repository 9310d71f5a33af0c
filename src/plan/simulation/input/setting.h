// A setting: learners, their step, what they exchange and over which line, said in a few numbers.
// For what was published, for fleets of a million chips, for questions before there is a fleet. A
// fleet with a job is simulated from its plan instead (from_plan.h).
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "plan/simulation/run/run_model.h"

namespace pelago::plan {

/// setting.toml; docs/SIMULATION.md says what the fields mean.
struct Setting {
  double parameters = 0;            // of the model; no default
  int64_t layers = 1;               // 1: a step is one piece, exchanges leave after it
  double embedding_parameters = 0;  // in no layer: of the embedding's fragment
  int64_t learners = 2;
  double chips = 1;   // of each learner, or chips_together of all; for faults alone
  double step_s = 0;  // of computing; no default
  double tokens = 1;  // of a learner's step
  double forward_share = 1.0 / 3;
  std::string method = "streaming";  // or "diloco", "data-parallel", "none"
  int64_t inner_steps = 100;         // H (arXiv:2501.18512)
  int64_t fragments = 0;             // of about equal size; 0: as fragment_layers says
  int64_t fragment_layers = 3;       // layers of a fragment, strided (arXiv:2501.18512)
  bool embedding_fragment = true;    // the embedding is a fragment of its own, with fragment_layers
  int64_t overlap_steps = 0;         // tau
  double bits = 16;                  // a value on the line
  std::string pattern = "all-to-all";  // or "ring", "all-gather"
  double codec_gb_s = 0;               // 1e9 bytes/s that a host packs and adds; 0: costs nothing
  double grace_s = 10;                 // as sites.grace_s of a job
  double bandwidth_mbit_s = 1000;      // of every line, each way
  double rtt_ms = 0;
  double loss = 0;            // of the bytes
  double rate_deviation = 0;  // of the logarithm of a line's rate, between exchanges
};

/// Reads a setting with its [[link]]s, [[learner]]s and [faults]. Throws Failure (exit 2) naming
/// file, key, value and what is allowed.
RunModel read_setting(const std::filesystem::path& path, const std::vector<std::string>& overrides);

/// What breaks how often: rates.toml, or the table [faults] of a setting.
FaultModel read_faults(const std::filesystem::path& path);

/// The schedule of a published method. Throws Failure (exit 2) if layers, fragments and H do not
/// go together.
std::vector<ScheduledExchange> schedule_of(const Setting& setting, const std::string& where);

}  // namespace pelago::plan
