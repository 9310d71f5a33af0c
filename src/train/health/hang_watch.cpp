#include "train/health/hang_watch.h"

#include <algorithm>

namespace pelago::train {

namespace {

// A hang shall be seen within three steps or 10 s, whichever is longer: the time for an answer is
// part of that.
constexpr double kSteps = 3;
constexpr double kSilenceS = 9.5;  // 0.5 s to look and to act
constexpr double kAnswerS = 2;
/// Nobody is stuck and nothing moves: longer than any pause of a disk or a loaded machine.
constexpr double kSilenceMaxS = 90;
/// The first step after a start compiles, allocates and faults pages in.
constexpr double kFirstStepS = 30;
constexpr double kForget = 0.8;  // of the longest step, each step
constexpr double kOwnGapS = 1;   // the watcher itself did not run

}  // namespace

HangWatch::HangWatch(size_t num_ranks, double expected_step_s, double now_s)
    : pulses_(num_ranks), expected_step_s_(expected_step_s), heard_s_(now_s), looked_s_(now_s) {}

void HangWatch::on_step(double step_s) {
  longest_step_s_ = std::max(step_s, kForget * longest_step_s_);
  ++num_steps_;
}

double HangWatch::limit_s() const {
  const double step_s = std::max(longest_step_s_, num_steps_ == 0 ? expected_step_s_ : 0.0);
  const double limit_s = std::max(kSteps * step_s, num_steps_ == 0 ? kFirstStepS : kSilenceS);
  return limit_s - kAnswerS;
}

void HangWatch::forgive(double now_s) {
  heard_s_ = now_s;
  looked_s_ = now_s;
  asked_s_ = -1;
}

HangWatch::Look HangWatch::look(std::span<const uint64_t> pulses,
                                std::span<const int64_t> answers,
                                double now_s) {
  Look result;
  const bool slept = now_s - looked_s_ > kOwnGapS;
  looked_s_ = now_s;
  const bool has_moved = !std::equal(pulses.begin(), pulses.end(), pulses_.begin());
  if (has_moved || slept) {
    pulses_.assign(pulses.begin(), pulses.end());
    forgive(now_s);
    return result;
  }
  if (asked_s_ < 0) {
    if (now_s - heard_s_ < limit_s()) return result;
    asked_s_ = now_s;
    ++question_;
    result.asks = true;
    return result;
  }
  for (size_t rank = 0; rank < answers.size(); ++rank) {
    if (answers[rank] != question_) result.silent.push_back(rank);
  }
  if (now_s - asked_s_ < kAnswerS) {
    result.silent.clear();
    return result;
  }
  result.is_hung = !result.silent.empty() || now_s - heard_s_ > kSilenceMaxS;
  return result;
}

}  // namespace pelago::train
