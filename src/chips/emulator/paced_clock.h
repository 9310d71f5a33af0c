// When the emulated chip would be done with what it was given so far. Pure: the time comes in.
//
// Three things go on at once on a chip, each in the order it was given: computing, copies to the
// host, and copies from it. Each has a clock that stands where its work so far would end.
//
// An operator moves the compute clock on by what it costs, at once and without sleeping. Whoever
// outside could tell the difference, by synchronising or by taking a mark, compares the clock with
// the wall. A host that is ahead sleeps until the clock, or its copy begins when the clock is
// there; a host that is behind is late, and the clock is set to now. A host that is thrown off its
// processor for a while is therefore not late, as long as it keeps pace on average between two such
// moments. While the chip is idle the clock stands still; the next operator starts it from then.
//
// A chip that ran dry because the host waited for somebody else is not late either: the end of the
// wait, and of the copy to the chip that follows it, move the compute clock on.
#pragma once

#include <algorithm>

namespace pelago::emulator {

class PacedClock {
 public:
  bool is_idle() const { return is_idle_; }

  /// The first work since the chip was idle begins now, or when what it needs is there.
  void begin(double now_s) {
    compute_s_ = std::max(now_s, ready_s_);
    is_idle_ = false;
  }

  void charge(double cost_s) {
    compute_s_ += cost_s;
    busy_s_ += cost_s;
  }

  /// When all work given so far would be done.
  double mark(double now_s) {
    if (is_idle_) return std::max(now_s, ready_s_);
    judge(now_s);
    return compute_s_;
  }

  /// When the work given so far ends, without judging the host.
  double compute_end_s() const { return compute_s_; }

  /// Each of these returns the end of a copy. after_s: when the bytes lie in the chip's memory.
  double copy_out(double after_s, double cost_s) {
    return out_s_ = std::max(after_s, out_s_) + cost_s;
  }
  /// arrived_s: when the bytes lay in the host's memory.
  double copy_in(double arrived_s, double cost_s) {
    return in_s_ = std::max(arrived_s, in_s_) + cost_s;
  }
  /// Between chips. link_begin(): when the links could start what is ready at ready_s.
  double link_begin(double ready_s) const { return std::max(ready_s, link_s_); }
  double charge_link(double begin_s, double cost_s) {
    return link_s_ = std::max(begin_s, link_s_) + cost_s;
  }

  /// Later work begins at end_s or after it.
  void wait_for(double end_s) {
    if (is_idle_) return wait_when_idle(end_s);
    compute_s_ = std::max(compute_s_, end_s);
  }
  /// The next synchronisation, and work after it, waits for end_s; work before it does not.
  void wait_when_idle(double end_s) { ready_s_ = std::max(ready_s_, end_s); }

  /// The host, who gives the chip its work, did nothing but wait meanwhile.
  void note_host_wait(double begin_s, double end_s) {
    if (is_idle_) return;
    judge(begin_s);
    compute_s_ = std::max(compute_s_, end_s);
  }

  /// All work and all copies are waited for. Returns how long to sleep from now.
  double synchronize(double now_s) {
    double end_s = std::max(ready_s_, out_s_);
    if (!is_idle_) {
      judge(now_s);
      end_s = std::max(end_s, compute_s_);
      is_idle_ = true;
    }
    const double ahead_s = std::max(end_s - now_s, 0.0);
    slept_s_ += ahead_s;
    return ahead_s;
  }

  double busy_s() const { return busy_s_; }
  double late_s() const { return late_s_; }
  double slept_s() const { return slept_s_; }
  void reset_stats() { busy_s_ = late_s_ = slept_s_ = 0; }

 private:
  void judge(double now_s) {
    late_s_ += std::max(now_s - compute_s_, 0.0);
    compute_s_ = std::max(now_s, compute_s_);
  }

  bool is_idle_ = true;
  double compute_s_ = 0;
  double ready_s_ = 0;  // while idle: nothing begins before it
  double out_s_ = 0;
  double in_s_ = 0;
  double link_s_ = 0;
  double busy_s_ = 0;
  double late_s_ = 0;
  double slept_s_ = 0;
};

}  // namespace pelago::emulator
