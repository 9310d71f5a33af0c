// When a process that was lost is started again: at once, unless it was lost before it had served
// for a while; then after pauses that double. What falls again and again, and can be done without,
// is put in quarantine, so that neither cores nor the log are spent on it.
#pragma once

#include <algorithm>

namespace pelago::serve {

struct RestartLaw {
  double pause_s = 0.25, pause_max_s = 10;  // before a start after a second loss; doubles
  double healthy_s = 30;                    // of service: a loss after that is a first one
  int losses_max = 0;         // in a row, then each start waits quarantine_s; 0: there is none
  double quarantine_s = 600;  // long enough to do no harm, short enough to mend itself in a night
};

/// Of one process and those that follow it. Pure.
class RestartPace {
 public:
  /// The process was lost, having served for served_s; 0: it never came to that. Returns how long
  /// the next start waits, in seconds.
  double note_loss(const RestartLaw& law, double served_s) {
    if (served_s > law.healthy_s) num_losses_ = 0;
    ++num_losses_;
    if (is_quarantined(law)) return law.quarantine_s;
    if (num_losses_ == 1) return 0;
    return std::min(law.pause_s * static_cast<double>(1 << std::min(num_losses_ - 1, 10)),
                    law.pause_max_s);
  }
  bool is_quarantined(const RestartLaw& law) const {
    return law.losses_max > 0 && num_losses_ >= law.losses_max;
  }
  int num_losses() const { return num_losses_; }  // in a row

 private:
  int num_losses_ = 0;
};

}  // namespace pelago::serve
