// The exchanges that are under way: who takes part, what has left, what has arrived.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "base/rng.h"
#include "plan/simulation/event_queue.h"
#include "plan/simulation/output/trace.h"
#include "plan/simulation/run/lines.h"
#include "plan/simulation/run/run_model.h"

namespace pelago::plan {

/// One exchange of a fragment, from the first site that has something to give until all have it.
struct Exchange {
  int64_t number = 0;               // of its fragment: the n-th
  std::vector<uint8_t> is_member;   // by site
  std::vector<uint32_t> num_ready;  // parts given, by site; parts go in order
  std::vector<double> arrived_s;    // by part; below 0: not yet
  uint32_t num_begun = 0;           // parts that are or were on the line
  std::vector<uint32_t> flows;      // of the part that is on the line
  double begun_s = -1;              // when all members had given the first part
  bool is_done = false;
};

class Exchanges {
 public:
  enum Kind : uint32_t { kFlowEnd = 100, kArrive };

  /// model, queue, lines and trace, which may be null, outlive this.
  Exchanges(const RunModel& model, EventQueue& queue, LineNetwork& lines, Rng rng, Trace* trace);

  /// The exchange, made now if nobody began it yet, with those present as its members.
  Exchange& get(size_t exchange_idx, int64_t number, const std::vector<uint8_t>& is_present);
  /// Null if it was never begun or is long over.
  Exchange* find(size_t exchange_idx, int64_t number);

  /// A site gives its next part.
  void give(size_t exchange_idx, Exchange& exchange, size_t site_idx, double now_s);
  /// Takes a site out of everything that is under way; what is on the line begins again.
  /// Returns how many exchanges went on without it.
  int64_t drop_member(size_t site_idx, double now_s);

  /// Of kFlowEnd. True if the flow was one of an exchange.
  bool on_flow_end(const Event& event);
  /// Of kArrive: the exchange and part that have arrived; null if the news is stale.
  Exchange* on_arrive(const Event& event, uint32_t& part_idx);
  /// Foretells the end of flows whose pace has changed.
  void foretell();

  const std::vector<double>& seconds() const { return seconds_; }
  /// The line from one site to another; -1: there is none.
  int line_between(size_t from, size_t to) const { return line_idx_[from * num_sites_ + to]; }

 private:
  void advance(uint32_t exchange_idx, Exchange& exchange, double now_s);
  void begin_part(uint32_t exchange_idx, Exchange& exchange, double now_s);
  void begin_flow(
      std::vector<uint32_t> lines, double bytes, uint64_t tag, Exchange& exchange, double now_s);
  double delay_s(const Exchange& exchange) const;
  void add_spans(const LineNetwork::Flow& flow, double now_s);
  std::vector<size_t> members(const Exchange& exchange) const;

  const RunModel& model_;
  EventQueue& queue_;
  LineNetwork& lines_;
  Rng rng_;
  size_t num_sites_;
  std::vector<int> line_idx_;
  Trace* trace_;
  std::vector<uint32_t> tracks_;                 // by line, from its first flow on
  std::vector<std::deque<Exchange>> under_way_;  // by exchange of the schedule
  std::vector<double> seconds_;
};

}  // namespace pelago::plan
