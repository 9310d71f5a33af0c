// Where a site stands: what the coordinator decides by.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pelago::sites {

enum class SitePhase { kCatchingUp, kStarting, kReady, kTraining, kFinished };
struct ReadyExchange {
  int64_t exchange = 0;
  int64_t tokens = 0;
  int64_t data_begin = 0, data_end = 0;  // data steps in the delta
  int64_t begun_epoch = -1;              // the newest Begin it knows for this exchange
  std::string hash;                      // of the outcome, once the whole mean is here; else empty
  std::vector<std::string> missing;      // members whose pieces have not come
  std::vector<std::string> suspects = {};  // members whose delta looks wrong in my slice
  std::vector<std::string> faults = {};    // of each suspect, what: "norm", "direction", ...
};
/// Everything the coordinator needs to know of a site, whenever it changes and every heartbeat.
struct SiteStatus {
  uint64_t incarnation = 0;
  int64_t sequence = 0;  // an older status than the last is dropped
  SitePhase phase = SitePhase::kCatchingUp;
  int64_t completed_steps = 0;
  int64_t left_out_steps = 0;  // of this start: not trained, their samples are still in the lane
  int64_t step_us = 0;      // median of the last round's steps, the line not counted; 0: not known
  int64_t shares_from = 0;  // the newest shares that it knows: they hold from this data step on
  std::vector<ReadyExchange> exchanges;  // snapshot taken, outcome not yet applied
  std::vector<int64_t> applied;          // the newest commit it holds, of each fragment; -1: none
  std::vector<int64_t> applied_epochs = {};  // of these commits; -1: of an earlier course
  int64_t stop_step = -1;                    // it will stop there
  bool wants_stop = false;                   // it was told to leave (SIGTERM)
  // Of a site in step: what a line to another lost for good, and which step's checkpoint is safe on
  // its disk; -1: none of this start yet.
  std::string lost_line = {};
  int64_t saved_step = -1;
  int64_t num_commits = 0, num_missed = 0, num_refused = 0;  // of an old epoch, or malformed
  int64_t sent_bytes = 0, exchange_payload_bytes = 0, exchanged_values = 0;
};

}  // namespace pelago::sites
