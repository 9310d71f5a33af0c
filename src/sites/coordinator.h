// The coordinator: RoundMachine joined to a transport, the clock and the journal. It moves no
// weights. Made on the journal of a run whose coordinator has died, it goes on with that run: the
// sites train on meanwhile and hear of it by its next answer. Single-threaded: everything,
// callbacks included, happens inside poll().
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "base/clock.h"
#include "sites/journal.h"
#include "sites/protocol/round_machine.h"
#include "sites/transport/transport.h"
#include "train/messages.h"

namespace pelago::sites {

struct CoordinatorCallbacks {
  std::function<void(const train::StepReport&)> on_step;
  std::function<void(const train::EvaluationReport&)> on_evaluation;
  std::function<void(const std::string& name, const std::string& fields_json)> on_event;
  std::function<void(const std::string& site, const SiteStatus&)> on_status;
};

class Coordinator {
 public:
  /// transport, journal and clock outlive the coordinator.
  Coordinator(const RoundOptions& options,
              Transport& transport,
              Journal& journal,
              const Clock& clock,
              CoordinatorCallbacks callbacks);
  /// Handles what comes within timeout_s, then what is due by time.
  void poll(double timeout_s);
  void request_stop();
  bool is_over() const { return rounds_.phase() == RoundMachine::RunPhase::kOver; }
  const RoundMachine& rounds() const { return rounds_; }

 private:
  void take(const Arrival& arrival);
  void take_report(const std::string& site, const Report& report);
  void carry_out(const RoundOutput& output);
  void announce(const std::string& name, const std::string& fields_json);
  void note_journal(const Status& written);

  RoundMachine rounds_;
  Transport* transport_;
  Journal* journal_;
  const Clock* clock_;
  CoordinatorCallbacks callbacks_;
  bool journal_is_behind_ = false;  // the disk is full: training goes on, records wait in memory
};

}  // namespace pelago::sites
