// A coordinator as a process that dies and comes back: a RoundMachine, an Outbox, a store, and the
// order that Coordinator keeps: durable first, then said. Of several that share a store one leads;
// the others stand by.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "sites/protocol/round_machine.h"
#include "sites/simulation/faulty_code.h"
#include "sites/simulation/simulated_store.h"
#include "sites/state/outbox.h"
#include "sites/transport/loopback.h"

namespace pelago::sites {

class SimulatedCoordinator {
 public:
  /// All references outlive this. endpoint: its place in the network.
  SimulatedCoordinator(const RoundOptions& options,
                       const std::string& endpoint,
                       SimulatedStore& store,
                       LoopbackNetwork& network,
                       const Clock& clock,
                       FaultyCode& faulty,
                       const Rng& rng);
  void turn();
  /// Dies after it has said so many more things; what it was about to write is there or is not.
  void crash_after(int64_t num_said, double down_s);
  /// Dies at once, and goes back to a checkpoint unless it finds sites at work.
  void lose_power(double down_s);
  void freeze_until(double until_s) { frozen_s_ = until_s; }
  void cut_from_store_until(double until_s) { cut_s_ = until_s; }
  void request_stop();
  /// Dies, and is started with --resume whatever it was at.
  void start_over() {
    is_started_over_ = true;
    wants_stop_ = false;
    lose_power(0.2);
  }
  /// Null while it is down or stands by.
  const RoundMachine* rounds() const { return rounds_.get(); }
  /// Leads, as far as the store knows.
  bool leads() const { return rounds_ && (!store_->is_shared() || seat_ == store_->seat()); }
  const std::string& endpoint() const { return endpoint_; }
  int64_t num_starts() const { return num_starts_; }
  int64_t num_refused() const { return num_refused_ + (rounds_ ? rounds_->num_refused() : 0); }
  int64_t num_differing() const {
    return num_differing_ + (rounds_ ? rounds_->num_differing() : 0);
  }
  /// Of everything it heard, in order: equal in two runs of one seed.
  uint64_t trace() const { return trace_; }
  /// Its last events, for a complaint.
  std::string story() const;

 private:
  void start();
  void come_up(double now_s);
  void forget_run();
  void step_down();
  void die();
  bool is_kept(double now_s);
  bool is_writing(double now_s);
  void carry_out(RoundOutput output);
  void submit();
  void tell(const RoundOutput& output);
  void note(const std::string& what);

  RoundOptions options_;
  std::string endpoint_;
  SimulatedStore* store_;
  LoopbackNetwork* network_;
  const Clock* clock_;
  FaultyCode* faulty_;
  Rng rng_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<RoundMachine> rounds_;
  Outbox outbox_;
  std::optional<int64_t> ticket_;  // of the write that it waits for
  std::optional<double> retry_s_;  // when it asks the store again
  int64_t seat_ = 0, num_written_ = 0;
  double kept_s_ = 0, looked_s_ = -1;
  double restart_s_ = 0;
  double down_s_ = 0;
  double frozen_s_ = -1, cut_s_ = -1;
  int64_t says_left_ = -1;  // until it dies; -1: it does not
  bool wants_stop_ = false;
  bool must_resume_ = false, is_started_over_ = false;
  int64_t num_starts_ = 0, num_refused_ = 0, num_differing_ = 0;
  uint64_t trace_ = 0;
  std::vector<std::string> events_;
};

}  // namespace pelago::sites
