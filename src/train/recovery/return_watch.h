// Looks from time to time whether a lost device is back: a process of its own opens it and asks it
// questions with known answers (chips/checks/known_answer.h). A device that was lost again soon
// after it came back is asked less and less often.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <set>

#include "plan/plan.h"
#include "train/process/worker_set.h"

namespace pelago::train {

class ReturnWatch {
 public:
  /// start.setup asks for an examination.
  explicit ReturnWatch(WorkerStart start) : start_(std::move(start)) {}

  /// place: of the device in the run's own plan.
  void on_lost(size_t place, double now_s);
  void on_taken_back(size_t place) { missing_.erase(place); }
  /// Starts and reads examinations, never waits. Returns a device that has passed.
  std::optional<size_t> look(const plan::SitePlan& own_site, double now_s);

 private:
  struct Missing {
    double next_s = 0;  // when to look
    double pause_s = 0;
    bool is_well = false;
  };
  struct Examination {
    size_t place;
    Worker worker;
    double deadline_s;
  };
  void end_examination(bool passed, double now_s);

  WorkerStart start_;
  std::map<size_t, Missing> missing_;  // by place
  std::map<size_t, int> num_losses_;   // by place
  std::optional<Examination> examination_;
};

}  // namespace pelago::train
