#include "plan/pipeline_time.h"

#include <algorithm>
#include <optional>

#include "base/error.h"

namespace pelago::plan {

namespace {

/// A stage goes forward with as many microbatches as it keeps, then forward and backward in turn.
struct Turns {
  int64_t num_ahead = 0, num_microbatches = 0;
  int64_t count() const { return 2 * num_microbatches; }
  bool is_forward(int64_t turn) const {
    if (turn < num_ahead) return true;
    if (turn >= 2 * num_microbatches - num_ahead) return false;
    return (turn - num_ahead) % 2 == 1;
  }
  int64_t microbatch(int64_t turn) const {
    if (turn < num_ahead) return turn;
    if (turn >= 2 * num_microbatches - num_ahead) return turn - num_microbatches;
    const int64_t round = (turn - num_ahead) / 2;
    return is_forward(turn) ? num_ahead + round : round;
  }
};

/// Plays the stages against each other, each as far as what it needs has come, until all are done.
class PipelinePlay {
 public:
  explicit PipelinePlay(const PipelineRun& run)
      : run_(run),
        num_stages_(run.stages.size()),
        num_microbatches_(static_cast<int64_t>(run.sequences.size())),
        at_(num_stages_) {
    const std::vector<double> unknown(run.sequences.size(), -1);
    hidden_s_.assign(num_stages_, unknown);
    gradient_s_.assign(num_stages_, unknown);
    time_.stages.resize(num_stages_);
    for (size_t stage = 0; stage < num_stages_; ++stage) {
      const auto behind = static_cast<int64_t>(num_stages_ - stage);
      const int64_t given = run.stages[stage].in_flight;
      at_[stage].turns = {std::min(given > 0 ? given : behind, num_microbatches_),
                          num_microbatches_};
      time_.stages[stage].in_flight_max = at_[stage].turns.num_ahead;
    }
  }

  PipelineTime play() {
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t stage = 0; stage < num_stages_; ++stage) {
        while (take_turn(stage)) moved = true;
      }
    }
    for (const PipelineTime::Stage& stage : time_.stages) {
      time_.end_s = std::max(time_.end_s, stage.end_s);
    }
    return std::move(time_);
  }

 private:
  struct Position {
    Turns turns;
    int64_t turn = 0;
    double now_s = 0;
    double copying_out_s = 0;               // until when
    double line_up_s = 0, line_down_s = 0;  // until when the line behind is taken, each way
    // What comes from either side is in order among itself; the two sides are not played in the
    // order of time, so they do not wait for each other here.
    double hidden_in_s = 0, gradient_in_s = 0;
  };

  bool take_turn(size_t stage) {
    Position& position = at_[stage];
    if (position.turn == position.turns.count()) return false;
    const bool is_forward = position.turns.is_forward(position.turn);
    const auto idx = static_cast<size_t>(position.turns.microbatch(position.turn));
    const bool needs_message = is_forward ? stage > 0 : stage + 1 < num_stages_;
    const double arrival_s = (is_forward ? hidden_s_ : gradient_s_)[stage][idx];
    if (needs_message && arrival_s < 0) return false;
    const StageCosts& costs = run_.stages[stage];
    const auto sequences = static_cast<double>(run_.sequences[idx]);
    const double begin_s = needs_message ? std::max(position.now_s, arrival_s) : position.now_s;
    const double work_s = (is_forward ? costs.forward : costs.backward).at(sequences);
    position.now_s = begin_s + work_s;
    position.turn += 1;
    PipelineTime::Stage& stage_time = time_.stages[stage];
    stage_time.busy_s += work_s;
    stage_time.end_s = position.now_s;
    if (!is_forward && idx + 1 == run_.sequences.size()) stage_time.last_backward_s = begin_s;
    if (is_forward && stage + 1 < num_stages_) {
      hidden_s_[stage + 1][idx] = deliver(stage, stage + 1, costs.message.at(sequences), sequences);
    } else if (!is_forward && stage > 0) {
      const double message_s = run_.stages[stage - 1].message.at(sequences);
      gradient_s_[stage - 1][idx] = deliver(stage, stage - 1, message_s, sequences);
    }
    return true;
  }

  /// When what stage `from` has just made is on the device of stage `to`.
  double deliver(size_t from, size_t to, double message_s, double sequences) {
    Position& sender = at_[from];
    Position& receiver = at_[to];
    const double out_s = run_.stages[from].copy.at(sequences);
    const double in_s = run_.stages[to].copy.at(sequences);
    sender.copying_out_s = std::max(sender.copying_out_s, sender.now_s) + out_s;
    double& copying_in_s = from < to ? receiver.hidden_in_s : receiver.gradient_in_s;
    double& line_s = from < to ? sender.line_down_s : receiver.line_up_s;
    line_s =
        std::max(line_s, sender.copying_out_s) + run_.stages[std::min(from, to)].line.at(sequences);
    copying_in_s = std::max(copying_in_s, line_s + message_s) + in_s;
    return copying_in_s;
  }

  const PipelineRun& run_;  // outlives the play
  size_t num_stages_;
  int64_t num_microbatches_;
  std::vector<Position> at_;
  std::vector<std::vector<double>> hidden_s_, gradient_s_;  // arrivals; below 0: not known yet
  PipelineTime time_;
};

/// A pipeline before this one that is the same in all; large sites have hundreds of few sorts.
/// Looks at the last few only: a site of many sorts must not cost a square.
std::optional<size_t> find_like(const std::vector<PipelineRun>& pipelines, size_t idx) {
  constexpr size_t kLookBack = 6;
  for (size_t back = 1; back <= std::min(kLookBack, idx); ++back) {
    if (pipelines[idx - back] == pipelines[idx]) return idx - back;
  }
  return std::nullopt;
}

}  // namespace

double PipelineTime::bubble() const {
  double busy_s = 0;
  for (const Stage& stage : stages) busy_s += stage.busy_s;
  return end_s > 0 ? 1 - busy_s / (end_s * static_cast<double>(stages.size())) : 0;
}

PipelineTime simulate_pipeline(const PipelineRun& run) {
  PELAGO_ASSERT(!run.stages.empty() && !run.sequences.empty(), "a pipeline has work to do");
  return PipelinePlay(run).play();
}

SiteTime simulate_site(const SiteRun& run) {
  SiteTime time;
  std::vector<std::vector<double>> free_s;  // when a stage is done with its reductions
  std::vector<std::vector<double>> came_s;  // and when their sums are on its device
  double computed_s = 0;
  time.pipelines.reserve(run.pipelines.size());
  for (const PipelineRun& pipeline : run.pipelines) {
    const auto like = find_like(run.pipelines, time.pipelines.size());
    time.pipelines.push_back(like ? time.pipelines[*like] : simulate_pipeline(pipeline));
    free_s.emplace_back(pipeline.stages.size(), 0.0);
    came_s.emplace_back(pipeline.stages.size(), 0.0);
    computed_s = std::max(computed_s, time.pipelines.back().end_s);
  }
  time.reduced_s = computed_s;
  for (const Reduction& reduction : run.reductions) {
    double begin_s = 0;
    for (const Reduction::Member& member : reduction.members) {
      const PipelineTime::Stage& stage =
          time.pipelines[member.pipeline_idx].stages[member.stage_idx];
      const double ready_s =
          stage.last_backward_s + member.ready_ratio * (stage.end_s - stage.last_backward_s);
      begin_s = std::max({begin_s, ready_s, free_s[member.pipeline_idx][member.stage_idx]});
    }
    for (const Reduction::Member& member : reduction.members) {
      free_s[member.pipeline_idx][member.stage_idx] = begin_s + reduction.seconds;
      double& sums_s = came_s[member.pipeline_idx][member.stage_idx];
      sums_s = std::max(sums_s, begin_s + reduction.seconds) + reduction.arrive_s;
      time.reduced_s = std::max(time.reduced_s, sums_s);
    }
  }
  time.reduction_wait_s = time.reduced_s - computed_s;
  double update_s = 0;
  for (const PipelineRun& pipeline : run.pipelines) {
    for (const StageCosts& stage : pipeline.stages) update_s = std::max(update_s, stage.update_s);
  }
  time.step_s = time.reduced_s + run.agree_s + update_s + run.gather_s;
  return time;
}

std::vector<int64_t> cut_microbatches(int64_t sequences, int64_t microbatch) {
  std::vector<int64_t> cuts(static_cast<size_t>(sequences / microbatch), microbatch);
  if (sequences % microbatch > 0) cuts.push_back(sequences % microbatch);
  return cuts;
}

}  // namespace pelago::plan
