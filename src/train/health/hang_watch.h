// Finds ranks that are stuck. One stuck rank silences all others within a step, since they wait for
// it; so silence alone does not tell whose fault it is. The supervisor then asks every worker, and
// a thread beside the one that trains answers once the device has nothing left to do. The device of
// a rank that only waits for others is idle and answers at once; a device that hangs, or a process
// that does not run, never does. If all answer, the silence has another cause (a slow disk, a
// machine that was suspended), and is borne for longer.
//
// Pure logic: time and counters come in.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace pelago::train {

class HangWatch {
 public:
  struct Look {
    bool asks = false;           // send question() to every worker now
    bool is_hung = false;        // give up waiting
    std::vector<size_t> silent;  // ranks that did not answer; empty: nobody in particular
  };

  /// expected_step_s: of the plan. The first steps of a start may take many times longer.
  HangWatch(size_t num_ranks, double expected_step_s, double now_s);

  void on_step(double step_s);
  /// pulses: by rank, count upwards with the work. answers: the last question that each answered.
  Look look(std::span<const uint64_t> pulses, std::span<const int64_t> answers, double now_s);
  int64_t question() const { return question_; }
  /// Whoever calls look() was busy elsewhere: silence is counted from now.
  void forgive(double now_s);

 private:
  double limit_s() const;

  std::vector<uint64_t> pulses_;
  double expected_step_s_;
  double longest_step_s_ = 0;  // of the last few
  int64_t num_steps_ = 0;
  double heard_s_, looked_s_;
  double asked_s_ = -1;  // below 0: nothing was asked since heard_s_
  int64_t question_ = 0;
};

}  // namespace pelago::train
