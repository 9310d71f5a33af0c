// What must hold of a run that has ended, whatever was done to it on the way.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "chaos/run/live_run.h"

namespace pelago::chaos {

struct WholeRun {
  std::vector<std::string> problems;  // sentences; none: all is well
  int64_t num_exchanges = 0;          // committed, each once
  int64_t last_step = 0;              // of the checkpoint that all sites left with
  int64_t spent_tokens = 0;           // in committed deltas
  int64_t returned_tokens = 0;        // trained by starts that died, and read again
};

/// After LiveRun::stop(). Each exchange has one commit that stands, no token is repeated or lost,
/// no result differed, all sites hold the same global weights, nothing is left behind.
/// program: pelago.
WholeRun judge_whole_run(LiveRun& run, const std::string& program);

/// Tokens of the steps that were reported between two moments (unix time), each step of a site
/// once. Reports that died with a coordinator are counted by the steps before and after them.
int64_t tokens_between(const RunRecords& records, double begin_s, double end_s);

/// Mean loss of all sites' steps in (first, last], as written last.
double mean_loss(const RunRecords& records,
                 const std::vector<std::string>& sites,
                 int64_t first,
                 int64_t last);

}  // namespace pelago::chaos
