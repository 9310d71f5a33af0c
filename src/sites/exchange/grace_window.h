// How long an exchange waits for a late site before it goes on without. A fixed time is wrong both
// ways: too long on a fast line, where every chip then waits, too short on a slow one, where a site
// is left out for nothing. Two measured things decide instead:
//   slack     a fragment is due tau steps after its snapshot. What its transfer leaves of that time
//             can be waited away without any chip noticing (Decoupled DiLoCo, arXiv:2604.21428).
//   lateness  how far behind the first site the others usually are, median and median deviation:
//             a site within its usual lateness is not late.
// The window is the larger of the two, within the job's bounds, and some steps at least: sites
// pause to evaluate and to save, which takes one of them longer than another and is seldom seen.
// How late a site is that was not waited for, nobody knows: each such time the window doubles, and
// narrows again while all come. So a site that has become slow is waited for until the batch is
// shared anew. Pure: time comes in.
#pragma once

#include <cstddef>
#include <deque>

namespace pelago::sites {

struct GraceOptions {
  double min_s = 2;           // a busy host may stop a process for a second, and whoever is left
                              // out must fetch the fragment: 16 times the bytes of an exchange
  double max_s = 10;          // sites.grace_s: also the window until enough has been measured
  double steps_min = 4;       // of the fastest member
  double deviations = 4;      // median deviations beyond the median that still count as usual
  size_t exchanges_min = 4;   // before the measurements count
  size_t exchanges_max = 32;  // older ones are forgotten
};

/// One exchange, as the coordinator saw it.
struct ExchangeTimes {
  double step_s = 0;       // of the fastest member
  double transfer_s = 0;   // from Begin to the last outcome
  double available_s = 0;  // tau of these steps
  double lateness_s = 0;   // from the first member's snapshot to the last one's that came
};

class GraceWindow {
 public:
  explicit GraceWindow(const GraceOptions& options) : options_(options) {}
  /// After each commit in which everybody is.
  void observe(const ExchangeTimes& times);
  /// After a commit without a site that came too late.
  void widen();
  /// From the first snapshot of an exchange on, this long.
  double seconds() const;

 private:
  GraceOptions options_;
  std::deque<ExchangeTimes> exchanges_;  // the newest last
  double widened_s_ = 0;                 // the window is not below it
};

}  // namespace pelago::sites
