// What must hold of sites in step, judged from outside: from what their workers did, what lay on
// their disks and what became durable.
//   - All sites of a start begin at one step with one state, which is that of the newest checkpoint
//     that all of them offered, or of a newer one that any of them offered and the run had made;
//     a site's starts have rising numbers. Nobody begins afresh once there was a checkpoint.
//   - A step is done by a site once a start, after the one before it, and only with what all others
//     gave it in that very start.
//   - Nobody begins a step after one at which somebody stopped.
//   - Training is exact: a step has one result, whichever start came to it.
//   - At the end all have the same step and state, and each step's tokens once.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "sites/protocol/messages.h"
#include "sites/simulation/truth.h"

namespace pelago::sites {

class LockstepTruth final : public Truth {
 public:
  LockstepTruth(const train::ExchangeSchedule& schedule, std::vector<std::string> sites)
      : Truth(schedule, 1), sites_(std::move(sites)), num_steps_(schedule.num_steps) {}

  void on_writes(const std::vector<StateWrite>& writes) override;
  /// The workers of a site begin.
  void on_begin(const std::string& site, int64_t start_number, int64_t step, uint64_t hash);
  /// What this site has to add to that step has left.
  void on_given(const std::string& site, int64_t start_number, int64_t step);
  void on_step(const std::string& site, int64_t start_number, int64_t step, uint64_t hash);
  /// The workers of a site have decided to do no more steps.
  void on_stop(const std::string& site, int64_t start_number, int64_t step);
  /// The workers of a site are done. may_be_early: the run was asked to stop.
  void on_end(
      const std::string& site, int64_t step, uint64_t hash, int64_t tokens, bool may_be_early);
  /// The run has ended well.
  void check_ends();
  /// Another run of the same steps begins: the stop is forgotten, results stay what they are.
  void resume() { ends_.clear(); }
  /// What these sites, by name, must begin at; -1: afresh, or not at all.
  int64_t step_to_begin_at(
      const std::map<std::string, std::vector<CheckpointOffer>>& offers) const {
    return step_to_begin_at(offers, saved_);
  }
  int64_t num_starts() const { return static_cast<int64_t>(starts_.size()); }
  /// Sum over starts of the steps by which a start went back behind what had been reached.
  int64_t num_repeated() const { return num_repeated_; }

 private:
  struct Start {
    std::map<std::string, std::vector<CheckpointOffer>> offers;  // of the sites taken in
    std::map<std::string, int64_t> told;                         // the step to begin at; -1: afresh
    std::map<std::string, std::pair<int64_t, uint64_t>> begun;
    std::map<std::string, int64_t> done, given;  // the last step
    std::optional<int64_t> stopped;
  };
  void check_choice(int64_t number, const Start& start);
  void on_run(const std::string& value);
  static int64_t step_to_begin_at(const std::map<std::string, std::vector<CheckpointOffer>>& offers,
                                  int64_t saved);

  std::vector<std::string> sites_;
  int64_t num_steps_;
  std::map<int64_t, Start> starts_;  // by number
  std::map<std::string, int64_t> newest_;
  std::map<int64_t, uint64_t> results_;  // by completed steps
  std::map<std::string, std::pair<int64_t, uint64_t>> ends_;
  int64_t num_repeated_ = 0;
  int64_t saved_ = -1,
          saved_before_ = -1;  // the newest checkpoint known; and before the last start
};

/// What all offer alike, the newest; -1: nothing.
int64_t newest_common(const std::map<std::string, std::vector<CheckpointOffer>>& offers);

}  // namespace pelago::sites
