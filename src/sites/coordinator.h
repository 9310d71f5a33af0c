// The coordinator: RoundMachine joined to a transport, the clock and a store. It moves no weights.
// Made on the state of a run whose coordinator has died, it goes on with that run: the sites train
// on meanwhile and hear of it by its next answer. Single-threaded: everything, callbacks included,
// happens inside poll().
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "base/clock.h"
#include "sites/journal.h"
#include "sites/protocol/round_machine.h"
#include "sites/state/outbox.h"
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
  /// store: what decides; journal: the record for people to read, and most often the store too. All
  /// but options and callbacks outlive the coordinator.
  Coordinator(const RoundOptions& options,
              Transport& transport,
              StateStore& store,
              Journal& journal,
              const Clock& clock,
              CoordinatorCallbacks callbacks);
  /// Handles what comes within timeout_s, then what is due by time.
  void poll(double timeout_s);
  void request_stop();
  bool is_over() const { return rounds_.phase() == RoundMachine::RunPhase::kOver; }
  const RoundMachine& rounds() const { return rounds_; }
  /// Another coordinator has taken over: this one says nothing any more.
  bool is_deposed() const { return is_deposed_; }

 private:
  void take(const Arrival& arrival);
  void take_report(const std::string& site, const Report& report);
  void carry_out(RoundOutput output);
  void write_waiting();
  void tell(const RoundOutput& output);
  void announce(const std::string& name, const std::string& fields_json);
  void note_journal(const Status& written);
  void note_store(const Status& written);

  RoundMachine rounds_;
  Transport* transport_;
  StateStore* store_;
  Journal* journal_;
  const Clock* clock_;
  CoordinatorCallbacks callbacks_;
  bool journal_is_behind_ = false;  // the disk is full: training goes on, records wait in memory
  Outbox outbox_;
  std::optional<double> refused_s_;  // when the store was last asked in vain, while it is
  bool is_deposed_ = false;
};

}  // namespace pelago::sites
