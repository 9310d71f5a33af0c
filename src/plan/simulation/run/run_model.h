// What the simulator plays: sites that compute, a schedule of exchanges between them, lines that
// carry these, and what breaks. Everything is a number that somebody measured, planned or assumed;
// input/ makes such a model from a plan or from a setting that was published.
//
// A site's step is a row of layers, forward one after another and backward the other way. A part
// of an exchange leaves when backward has passed its layer and must be there before a later step
// goes forward through it. What a plan's sites exchange leaves after a step and is merged before
// one: one layer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pelago::plan {

struct SimulatedSite {
  std::string name;
  double step_s = 0;  // of computing, when all chips work
  double forward_share =
      1.0 / 3;  // of step_s; a backward pass is two products where forward is one
  int64_t num_layers = 1;
  double tokens = 0;  // of a step
  double chips = 1;
  double joins_at_s = 0;    // before that it is not there
  double leaves_at_s = -1;  // below 0: it stays
};

/// A part of an exchange: so many bytes of a layer's values, one way between two sites if there
/// are two.
struct ExchangePart {
  int64_t layer_idx = 0;
  double bytes = 0;
};

/// Taken at the end of steps first_step, first_step + period, ...; merged before the layer goes
/// forward in step taken + 1 + overlap_steps.
struct ScheduledExchange {
  int64_t first_step = 0;
  int64_t period_steps = 1;
  int64_t overlap_steps = 0;        // tau; 0: the site waits
  std::vector<ExchangePart> parts;  // in the order in which backward finishes them
};

enum class ExchangePattern {
  kAllToAll,   // a slice to each site, its mean to all: 2/N of the bytes over every line each way
  kAllGather,  // every site's bytes to every other: what thin deltas do
  kRing,       // 2(N-1)/N of the bytes over each line of the ring, at the pace of the slowest
};

struct ExchangeModel {
  std::vector<ScheduledExchange> schedule;  // empty: the sites exchange nothing
  ExchangePattern pattern = ExchangePattern::kAllToAll;
  double codec_bytes_s = 0;  // of quantising and adding up, by the hosts; 0: costs nothing
  double state_bytes = 0;    // that a site fetches when it joins or comes back
  double grace_s = 10;       // how long an exchange waits for a site that is silent
};

/// One way between two sites.
struct SimulatedLine {
  size_t from = 0, to = 0;
  double bytes_s = 0;
  double delay_s = 0;         // one way
  double loss = 0;            // of the bytes, 0..1: they go again
  double rate_deviation = 0;  // of the rate's logarithm, from one exchange to the next
};

/// One thing that breaks.
struct FaultKind {
  std::string name;           // "chip", "host", "process", "site"
  double mtbf_s = 0;          // of one unit; 0: never
  double chips_per_unit = 1;  // 0: the whole site is one unit
  double chips_lost = 0;      // until repaired; the site goes on with the others
  double repair_s = 0;        // until they are back
  bool stops_site_until_repair = false;
};

struct FaultModel {
  std::vector<FaultKind> kinds;
  double line_mtbf_s = 0, line_repair_s = 0;
  double detect_s = 5;               // a heartbeat of 1 s, five of which are missed
  double restart_s = 30;             // new processes, groups, weights from the host's memory
  int64_t snapshot_every_steps = 8;  // what a lost chip costs to repeat, at most
  double snapshot_s = 0;             // a step is longer by this when one is taken
  double spares = 0;                 // chips of a site that stand by: a lost one costs no pace
  double least_share = 0.5;          // with fewer of its chips than this a site waits for repairs
  // Chips that are slow for a while: the site goes at their pace.
  double slow_mtbf_s = 0, slow_s = 600, slow_factor = 1.3;
  double step_deviation = 0;  // of each chip's step time, relative: the site waits for the slowest
};

struct RunModel {
  std::string name;
  std::vector<SimulatedSite> sites;
  ExchangeModel exchange;
  std::vector<SimulatedLine> lines;
  FaultModel faults;
};

/// Throws Failure (exit 2) naming what of the model cannot be: no site, a step of no length, two
/// sites without a line between them, a line of no width, an overlap as long as a period.
void check_model(const RunModel& model);

}  // namespace pelago::plan
