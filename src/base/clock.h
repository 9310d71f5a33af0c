// Time comes in as a Clock, so that protocols run in virtual time under test.
#pragma once

#include <chrono>
#include <thread>

namespace pelago {

class Clock {
 public:
  virtual ~Clock() = default;
  /// Monotonic seconds since an arbitrary start.
  virtual double now_s() const = 0;
};

class SystemClock final : public Clock {
 public:
  double now_s() const override {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
};

/// A clock that a test moves by hand.
class ManualClock final : public Clock {
 public:
  double now_s() const override { return now_s_; }
  void advance(double seconds) { now_s_ += seconds; }

 private:
  double now_s_ = 0.0;
};

/// Monotonic seconds, for measuring how long something took.
inline double steady_now_s() { return SystemClock().now_s(); }

/// Sleeps until steady_now_s() reaches deadline_s; returns at once if it has passed.
inline void sleep_until_s(double deadline_s) {
  const double wait_s = deadline_s - steady_now_s();
  if (wait_s > 0) std::this_thread::sleep_for(std::chrono::duration<double>(wait_s));
}

}  // namespace pelago
