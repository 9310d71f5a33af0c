// The parts of a run in virtual time: the loop of events, the sites' steps (run_play.cpp), and what
// happens when something breaks, comes or goes (run_faults.cpp).
#pragma once

#include <cstdint>
#include <vector>

#include "base/rng.h"
#include "plan/simulation/event_queue.h"
#include "plan/simulation/run/exchanges.h"
#include "plan/simulation/run/lines.h"
#include "plan/simulation/run/run_play.h"
#include "plan/simulation/run/site_clock.h"

namespace pelago::plan {

class RunMachine {
 public:
  /// model and options outlive this.
  RunMachine(const RunModel& model, const RunOptions& options);
  RunOutcome play();

 private:
  enum Kind : uint32_t {
    kMark,        // a site reaches its next mark
    kAfterPause,  // a snapshot is taken, or fetched state is there
    kFault,       // what: the kind
    kBack,        // a site has restarted
    kRepair,      // what: the kind whose chips come back
    kDrop,        // a site that is down is left out
    kSlow,        // a chip is slow for a while
    kLineFault,
    kLineRepair,
    kLineDrop,  // a line has been down for as long as an exchange waits
    kJoin,
    kLeave,
  };

  static std::vector<double> capacities(const RunModel& model);
  void begin();
  void foretell_fault(uint32_t site_idx, uint32_t kind_idx);
  void foretell_slow(uint32_t site_idx);
  void take(const Event& event);

  double step_length_s(uint32_t site_idx);
  void begin_step(uint32_t site_idx);
  void foretell_mark(uint32_t site_idx);
  void pass_marks(uint32_t site_idx);
  /// What a site waits for: nothing if it takes no part.
  bool is_there(uint32_t site_idx, const Mark& mark);
  void end_step(uint32_t site_idx);
  void on_arrive(const Event& event);
  void wake_waiting();
  /// A span of computing; name empty: of the steps since the last one.
  void add_span(uint32_t site_idx, double begin_s, const std::string& name);

  /// Sites that an exchange taken in this step counts on: those that are there, have not passed the
  /// step, as one that came back may have, and are not behind a dead line.
  std::vector<uint8_t> members_at(int64_t step) const;
  /// The furthest step of the other sites that are at work; below 0: there is none.
  int64_t step_of_others(uint32_t site_idx) const;
  void drop(size_t site_idx);
  void join(uint32_t site_idx);
  void leave(uint32_t site_idx);

  void on_fault(uint32_t site_idx, uint32_t kind_idx);
  void on_repair(uint32_t site_idx, uint32_t kind_idx);
  bool is_short(uint32_t site_idx) const;
  /// Of the fragments, those that the others have merged since it was there.
  double missed_share(const SiteClock& clock, int64_t others) const;
  void come_back(uint32_t site_idx);
  void on_line_fault(uint32_t line_idx);
  void on_line_repair(uint32_t line_idx);

  RunOutcome finish();
  const RunModel& model_;
  const RunOptions& options_;
  Rng rng_;
  EventQueue queue_;
  LineNetwork lines_;
  Exchanges exchanges_;
  Rng noise_;
  std::vector<std::vector<Rng>> fault_rngs_;
  std::vector<Rng> slow_rngs_, line_rngs_;
  std::vector<SiteClock> sites_;
  std::vector<uint8_t> is_present_;
  std::vector<uint8_t> line_is_down_;  // 1: since less than the grace; 2: exchanges go without it
  std::vector<int64_t> line_faults_;
  std::vector<uint32_t> tracks_;
  size_t num_over_ = 0;
  double now_s_ = 0, end_s_ = 0;
  RunOutcome outcome_;
};

}  // namespace pelago::plan
