// The coordinator as a process that dies and comes back: a RoundMachine, a disk that may be slow
// and survives it, and the order that Coordinator keeps: durable first, then said.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "sites/protocol/round_machine.h"
#include "sites/simulation/faulty_code.h"
#include "sites/simulation/truth.h"
#include "sites/transport/loopback.h"

namespace pelago::sites {

class SimulatedCoordinator {
 public:
  /// All references outlive this. disk_s: a write takes up to so long.
  SimulatedCoordinator(const RoundOptions& options,
                       double disk_s,
                       LoopbackNetwork& network,
                       const Clock& clock,
                       FaultyCode& faulty,
                       Truth& truth,
                       const Rng& rng);
  void turn();
  /// Dies after it has said so many more things; what it was about to write is there or is not.
  void crash_after(int64_t num_said, double down_s);
  void freeze_until(double until_s) { frozen_s_ = until_s; }
  void request_stop();
  /// Null while it is down.
  const RoundMachine* rounds() const { return rounds_.get(); }
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
  void die();
  void carry_out(RoundOutput output);
  void finish(RoundOutput output);

  RoundOptions options_;
  double disk_s_;
  LoopbackNetwork* network_;
  const Clock* clock_;
  FaultyCode* faulty_;
  Truth* truth_;
  Rng rng_;
  DurableState disk_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<RoundMachine> rounds_;
  std::optional<RoundOutput> pending_;  // on its way to the disk
  double disk_done_s_ = 0;
  double restart_s_ = -1;
  double down_s_ = 0;
  double frozen_s_ = -1;
  int64_t says_left_ = -1;  // until it dies; -1: it does not
  bool wants_stop_ = false;
  int64_t num_starts_ = 0, num_refused_ = 0, num_differing_ = 0;
  uint64_t trace_ = 0;
  std::vector<std::string> events_;
};

}  // namespace pelago::sites
