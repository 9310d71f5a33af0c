// When the emulated chip would be done with the work given to it so far. Pure: the time comes in.
//
// Each operator moves the clock on by what it would cost, at once and without sleeping; only
// synchronising compares it with the wall. A host that is ahead sleeps until the clock; a host that
// is behind is late, and the clock is set to now. A host that is thrown off its processor for a
// while is therefore not late, as long as it keeps pace on average between two synchronisations.
// While the chip is idle the clock stands still; the next operator starts it from that moment.
#pragma once

namespace pelago::emulator {

class PacedClock {
 public:
  bool is_idle() const { return is_idle_; }

  /// The first work since the chip was idle begins now.
  void begin(double now_s) {
    clock_s_ = now_s;
    is_idle_ = false;
  }

  void charge(double cost_s) {
    clock_s_ += cost_s;
    busy_s_ += cost_s;
  }

  /// All work is waited for. Returns how long to sleep from now.
  double synchronize(double now_s) {
    if (is_idle_) return 0;
    is_idle_ = true;
    const double ahead_s = clock_s_ - now_s;
    if (ahead_s < 0) {
      late_s_ -= ahead_s;
      return 0;
    }
    slept_s_ += ahead_s;
    return ahead_s;
  }

  double busy_s() const { return busy_s_; }
  double late_s() const { return late_s_; }
  double slept_s() const { return slept_s_; }
  void reset_stats() { busy_s_ = late_s_ = slept_s_ = 0; }

 private:
  bool is_idle_ = true;
  double clock_s_ = 0;
  double busy_s_ = 0;
  double late_s_ = 0;
  double slept_s_ = 0;
};

}  // namespace pelago::emulator
