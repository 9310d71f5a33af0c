#include "plan/simulation/step/step_play.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace pelago::plan {

namespace {

/// Forward as far ahead as a stage keeps microbatches, then backward and forward in turn (1F1B).
struct Turn {
  bool is_forward = true;
  int64_t microbatch = 0;
};

Turn turn_at(int64_t turn, int64_t num_ahead, int64_t num_microbatches) {
  if (turn < num_ahead) return {true, turn};
  if (turn >= 2 * num_microbatches - num_ahead) return {false, turn - num_microbatches};
  const int64_t since = turn - num_ahead;
  const bool is_forward = since % 2 == 1;
  return {is_forward, is_forward ? num_ahead + since / 2 : since / 2};
}

}  // namespace

StepPlay::StepPlay(const SiteRun& run, const std::vector<std::vector<int>>& line_of)
    : agree_s_(run.agree_s), gather_s_(run.gather_s) {
  std::vector<uint32_t> first_stage;
  int num_lines = 0;
  for (size_t p = 0; p < run.pipelines.size(); ++p) {
    const PipelineRun& pipeline = run.pipelines[p];
    first_stage.push_back(static_cast<uint32_t>(stages_.size()));
    sequences_.emplace_back(pipeline.sequences.begin(), pipeline.sequences.end());
    const auto num_microbatches = static_cast<int64_t>(pipeline.sequences.size());
    for (size_t s = 0; s < pipeline.stages.size(); ++s) {
      Stage stage;
      stage.pipeline_idx = static_cast<uint32_t>(p);
      stage.costs = pipeline.stages[s];
      stage.has_previous = s > 0;
      stage.has_next = s + 1 < pipeline.stages.size();
      const auto behind = static_cast<int64_t>(pipeline.stages.size() - s);
      stage.num_ahead =
          std::min(stage.costs.in_flight > 0 ? stage.costs.in_flight : behind, num_microbatches);
      stage.num_microbatches = num_microbatches;
      if (!line_of.empty()) stage.line = line_of[p][s];
      num_lines = std::max(num_lines, stage.line + 1);
      update_s_ = std::max(update_s_, stage.costs.update_s);
      stages_.push_back(stage);
    }
  }
  line_free_s_.assign(2 * static_cast<size_t>(num_lines), 0.0);
  joined_.resize(stages_.size());
  for (const Reduction& reduction : run.reductions) {
    Bucket bucket;
    bucket.seconds = reduction.seconds;
    bucket.arrive_s = reduction.arrive_s;
    for (const Reduction::Member& member : reduction.members) {
      const uint32_t stage =
          first_stage[member.pipeline_idx] + static_cast<uint32_t>(member.stage_idx);
      bucket.stages.push_back(stage);
      joined_[stage].push_back({static_cast<uint32_t>(buckets_.size()), member.ready_ratio});
    }
    buckets_.push_back(std::move(bucket));
  }
}

void StepPlay::reset() {
  queue_.clear();
  now_s_ = reduced_s_ = 0;
  std::fill(line_free_s_.begin(), line_free_s_.end(), 0.0);
  for (Stage& stage : stages_) {
    stage.turn = stage.num_hidden = stage.num_gradients = 0;
    stage.is_busy = stage.has_offered = false;
    stage.begun_s = stage.busy_s = stage.end_s = 0;
    stage.copying_out_s = stage.copying_in_s = stage.sums_in_s = 0;
    stage.last_backward_s = stage.last_end_s = 0;
    stage.next_reduction = 0;
  }
  for (Bucket& bucket : buckets_) bucket.num_missing = static_cast<uint32_t>(bucket.stages.size());
}

StepOutcome StepPlay::play(std::span<const double> factors,
                           const StepTracks* tracks,
                           double begin_s) {
  PELAGO_ASSERT(factors.empty() || factors.size() == stages_.size(), "a factor for each stage");
  factors_ = factors;
  tracks_ = tracks;
  trace_begin_s_ = begin_s;
  reset();
  for (uint32_t i = 0; i < stages_.size(); ++i) begin_turn(i);
  while (!queue_.is_empty()) {
    const Event event = queue_.pop();
    now_s_ = event.at_s;
    switch (event.kind) {
      case kComputed:
        end_turn(event.who);
        break;
      case kAtLine:
        at_line(event.who, event.what == kBack, event.version);
        break;
      case kAtHost:
        at_host(event.who, event.what == kBack, event.version);
        break;
      case kOnDevice:
        (event.what == kBack ? stages_[event.who].num_gradients : stages_[event.who].num_hidden) +=
            1;
        begin_turn(event.who);
        break;
      case kReady:
        join(event.who);
        break;
      default:
        end_bucket(event.who);
        break;
    }
  }
  StepOutcome outcome;
  double computed_s = 0;
  for (const Stage& stage : stages_) computed_s = std::max(computed_s, stage.end_s);
  const double reduced_s = std::max(reduced_s_, computed_s);
  const auto count = static_cast<double>(stages_.size());
  outcome.step_s = reduced_s + agree_s_ + update_s_ + gather_s_;
  outcome.update_s = count * (outcome.step_s - reduced_s);
  for (const Stage& stage : stages_) {
    outcome.compute_s += stage.busy_s;
    // A stage that is done early in a site whose others still compute waits for their pipelines.
    outcome.bubble_s += computed_s - stage.busy_s;
    outcome.reduce_s += reduced_s - computed_s;
  }
  if (tracks != nullptr && outcome.step_s > reduced_s) {
    for (uint32_t i = 0; i < stages_.size(); ++i) {
      tracks->trace->add(tracks->stages[i],
                         "update",
                         SpanKind::kUpdate,
                         begin_s + reduced_s,
                         begin_s + outcome.step_s);
    }
  }
  return outcome;
}

void StepPlay::begin_turn(uint32_t idx) {
  Stage& stage = stages_[idx];
  if (stage.is_busy || stage.turn == 2 * stage.num_microbatches) return;
  const Turn turn = turn_at(stage.turn, stage.num_ahead, stage.num_microbatches);
  if (turn.is_forward ? stage.has_previous && stage.num_hidden <= turn.microbatch
                      : stage.has_next && stage.num_gradients <= turn.microbatch) {
    return;
  }
  stage.is_busy = true;
  stage.begun_s = now_s_;
  const LinearCost& cost = turn.is_forward ? stage.costs.forward : stage.costs.backward;
  double work_s = cost.at(sequences(stage, turn.microbatch));
  if (!factors_.empty()) work_s *= factors_[idx];
  queue_.push(now_s_ + work_s, kComputed, idx);
  if (!turn.is_forward && turn.microbatch + 1 == stage.num_microbatches) {
    stage.last_backward_s = now_s_;
    stage.last_end_s = now_s_ + work_s;
    stage.has_offered = true;
    offer(idx);
  }
}

void StepPlay::end_turn(uint32_t idx) {
  Stage& stage = stages_[idx];
  const Turn turn = turn_at(stage.turn, stage.num_ahead, stage.num_microbatches);
  stage.is_busy = false;
  stage.turn += 1;
  stage.busy_s += now_s_ - stage.begun_s;
  stage.end_s = now_s_;
  if (tracks_ != nullptr) add_span(idx, turn.is_forward, turn.microbatch);
  if (turn.is_forward ? stage.has_next : stage.has_previous) {
    send(idx, !turn.is_forward, turn.microbatch);
  }
  begin_turn(idx);
}

void StepPlay::send(uint32_t from, bool is_back, int64_t microbatch) {
  Stage& sender = stages_[from];
  const double out_s = sender.costs.copy.at(sequences(sender, microbatch));
  sender.copying_out_s = std::max(sender.copying_out_s, now_s_) + out_s;
  const Stage& border = is_back ? stages_[from - 1] : sender;
  const auto what = is_back ? kBack : 0U;
  const auto which = static_cast<uint32_t>(microbatch);
  if (border.line >= 0) {
    queue_.push(sender.copying_out_s, kAtLine, from, what, which);
    return;
  }
  const uint32_t to = is_back ? from - 1 : from + 1;
  const double there_s =
      sender.copying_out_s + border.costs.message.at(sequences(sender, microbatch));
  const bool is_direct = stages_[to].costs.copy.at(1) == 0;
  queue_.push(there_s, is_direct ? kOnDevice : kAtHost, to, what, which);
}

void StepPlay::at_line(uint32_t from, bool is_back, int64_t microbatch) {
  const Stage& border = stages_[is_back ? from - 1 : from];
  double& free_s = line_free_s_[2 * static_cast<size_t>(border.line) + (is_back ? 1 : 0)];
  const double count = sequences(border, microbatch);
  free_s = std::max(free_s, now_s_) + border.costs.line.at(count);
  queue_.push(free_s + border.costs.message.at(count),
              kAtHost,
              is_back ? from - 1 : from + 1,
              is_back ? kBack : 0U,
              static_cast<uint32_t>(microbatch));
}

void StepPlay::at_host(uint32_t to, bool is_back, int64_t microbatch) {
  Stage& receiver = stages_[to];
  const double in_s = receiver.costs.copy.at(sequences(receiver, microbatch));
  receiver.copying_in_s = std::max(receiver.copying_in_s, now_s_) + in_s;
  queue_.push(receiver.copying_in_s,
              kOnDevice,
              to,
              is_back ? kBack : 0U,
              static_cast<uint32_t>(microbatch));
}

void StepPlay::offer(uint32_t idx) {
  const Stage& stage = stages_[idx];
  if (!stage.has_offered || stage.next_reduction == joined_[idx].size()) return;
  const double ratio = joined_[idx][stage.next_reduction].ready_ratio;
  const double ready_s = stage.last_backward_s + ratio * (stage.last_end_s - stage.last_backward_s);
  queue_.push(std::max(now_s_, ready_s), kReady, idx);
}

void StepPlay::join(uint32_t idx) {
  const uint32_t bucket_idx = joined_[idx][stages_[idx].next_reduction].bucket;
  Bucket& bucket = buckets_[bucket_idx];
  bucket.num_missing -= 1;
  if (bucket.num_missing > 0) return;
  bucket.begun_s = now_s_;
  queue_.push(now_s_ + bucket.seconds, kReduced, bucket_idx);
}

void StepPlay::end_bucket(uint32_t bucket_idx) {
  const Bucket& bucket = buckets_[bucket_idx];
  for (const uint32_t stage : bucket.stages) {
    double& sums_in_s = stages_[stage].sums_in_s;
    sums_in_s = std::max(sums_in_s, now_s_) + bucket.arrive_s;
    reduced_s_ = std::max(reduced_s_, sums_in_s);
  }
  if (tracks_ != nullptr && !tracks_->reductions.empty()) {
    tracks_->trace->add(tracks_->reductions[bucket.stages.front()],
                        fmt::format("bucket {}", bucket_idx),
                        SpanKind::kReduce,
                        trace_begin_s_ + bucket.begun_s,
                        trace_begin_s_ + now_s_);
  }
  for (const uint32_t stage : bucket.stages) {
    stages_[stage].next_reduction += 1;
    offer(stage);
  }
}

void StepPlay::add_span(uint32_t idx, bool is_forward, int64_t microbatch) {
  tracks_->trace->add(tracks_->stages[idx],
                      fmt::format("{}{}", is_forward ? "F" : "B", microbatch),
                      is_forward ? SpanKind::kForward : SpanKind::kBackward,
                      trace_begin_s_ + stages_[idx].begun_s,
                      trace_begin_s_ + now_s_);
}

}  // namespace pelago::plan
