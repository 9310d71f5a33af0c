#include "train/grid/pipeline.h"

#include <algorithm>
#include <cmath>

#include "base/clock.h"
#include "base/error.h"
#include "chips/torch.h"
#include "plan/across/joint.h"
#include "train/grid/schedule.h"

namespace pelago::train {

namespace {

/// Messages made ready for ahead of their turn: one that is being used up, one that arrives.
constexpr size_t kTurnsAhead = 3;

const plan::StagePlan& stage_plan(const PipelineOptions& options, const plan::Place& place) {
  return options.site.pipelines[place.pipeline_idx].stages[place.stage_idx];
}

/// Brought to the host together: each copy by itself would take a launch and a way to the host.
std::vector<double> read_scalars(const std::vector<Tensor>& scalars) {
  if (scalars.empty()) return {};
  const Tensor values = torch::stack(scalars).to(torch::kCPU).to(torch::kDouble);  // [n]
  return {values.data_ptr<double>(), values.data_ptr<double>() + values.numel()};
}

/// What the pass makes; adds to seconds what the device took for it, if it can tell.
template <typename Pass>
auto timed(const Pipeline& pipeline, double& seconds, Pass&& pass) {
  const std::optional<double> begin_s = pipeline.work_s();
  auto made = pass();
  if (begin_s) seconds += *pipeline.work_s() - *begin_s;
  return made;
}

}  // namespace

Pipeline::Pipeline(const PipelineOptions& options,
                   chips::Device& device,
                   model::Parameters& parameters)
    : options_(options),
      device_(&device),
      stage_(
          options.model,
          parameters,
          {.recompute = stage_plan(options, plan::place_of(options.site, options.rank)).recompute,
           .tensor_group = options.tensor_group,
           .tamper = options.tamper}) {
  const plan::Place place = plan::place_of(options.site, options.rank);
  const std::vector<plan::StagePlan>& stages = options.site.pipelines[place.pipeline_idx].stages;
  pipeline_idx_ = place.pipeline_idx;
  stage_idx_ = place.stage_idx;
  num_stages_ = stages.size();
  tensor_idx_ = place.tensor_idx;
  tensor_count_ = static_cast<int64_t>(stages[stage_idx_].ranks.size());
  for (const plan::StagePlan& stage : stages) {
    for (const int rank : stage.ranks) {
      needs_loss_scale_ |= options.dtypes[static_cast<size_t>(rank)] == torch::kHalf;
    }
  }
  PELAGO_ASSERT(num_stages_ == 1 || options.courier != nullptr, "stages speak through a courier");
}

/// A line between sites is thinner than any link within one.
bool Pipeline::rounds_between(int other_rank) const {
  const std::vector<int>& sites = options_.site_of_rank;
  return options_.activation_bits < 32 && !sites.empty() &&
         sites[static_cast<size_t>(options_.rank)] != sites[static_cast<size_t>(other_rank)];
}

c10::ScalarType Pipeline::border_dtype(int other_rank) const {
  const c10::ScalarType own = options_.dtypes[static_cast<size_t>(options_.rank)];
  const c10::ScalarType other = options_.dtypes[static_cast<size_t>(other_rank)];
  if (own == torch::kFloat32 && other == own && rounds_between(other_rank)) return torch::kBFloat16;
  if (own == torch::kFloat32) return other;
  if (other == torch::kFloat32 || other == own) return own;
  return torch::kHalf;
}

/// num_rows: of this rank. The stage's tokens are cut evenly over its ranks.
std::vector<Pipeline::Share> Pipeline::shares_with(size_t stage_idx, int64_t num_rows) const {
  const std::vector<int>& ranks = options_.site.pipelines[pipeline_idx_].stages[stage_idx].ranks;
  const int64_t own_begin = tensor_idx_ * num_rows;
  const int64_t their_rows = num_rows * tensor_count_ / static_cast<int64_t>(ranks.size());
  std::vector<Share> shares;
  for (size_t i = 0; i < ranks.size(); ++i) {
    const int64_t begin = std::max(own_begin, static_cast<int64_t>(i) * their_rows);
    const int64_t end = std::min(own_begin + num_rows, static_cast<int64_t>(i + 1) * their_rows);
    if (begin < end) shares.push_back({ranks[i], begin - own_begin, end - own_begin});
  }
  return shares;
}

void Pipeline::expect(size_t from_stage, int64_t num_rows, Tag tag) {
  for (const Share& share : shares_with(from_stage, num_rows)) {
    options_.courier->expect({share.end - share.begin, options_.model.hidden_size},
                             border_dtype(share.rank),
                             share.rank,
                             tag);
  }
}

Tensor Pipeline::take(size_t from_stage, int64_t num_rows, Tag tag) {
  std::vector<Tensor> parts;
  for (const Share& share : shares_with(from_stage, num_rows)) {
    parts.push_back(options_.courier->take(share.rank, tag));
  }
  return parts.size() == 1 ? parts.front() : torch::cat(parts);
}

void Pipeline::send(const Tensor& rows, size_t to_stage, Tag tag) {
  const torch::NoGradGuard no_grad;
  for (const Share& share : shares_with(to_stage, rows.size(0))) {
    options_.courier->send(rows.narrow(0, share.begin, share.end - share.begin)
                               .to(border_dtype(share.rank))
                               .contiguous(),
                           share.rank,
                           tag);
  }
}

int64_t Pipeline::own_rows(int64_t sequence_length, std::span<const int64_t> windows) const {
  return static_cast<int64_t>(windows.size()) * sequence_length / tensor_count_;
}

model::StageInput Pipeline::input_of(const TokenSource& source,
                                     int64_t sequence_length,
                                     std::span<const int64_t> windows) {
  model::StageInput input;
  input.batch = static_cast<int64_t>(windows.size());
  input.num_tokens = sequence_length;
  if (is_first() || is_last()) {
    const Batch batch = read_windows(source, sequence_length, windows);
    if (is_first()) input.tokens = device_->copy_to_device(batch.tokens, steady_now_s());
    if (is_last()) input.targets = device_->copy_to_device(batch.targets, steady_now_s());
  }
  if (!is_first()) {
    input.hidden = take(stage_idx_ - 1, own_rows(sequence_length, windows), kForward);
  }
  return input;
}

std::optional<double> Pipeline::work_s() const {
  const double busy_s = device_->stats().device_busy_s;
  if (busy_s > 0) return busy_s;
  if (device_->mark() == nullptr) return steady_now_s();
  return std::nullopt;
}

PipelineResult Pipeline::train(const TokenSource& source,
                               int64_t sequence_length,
                               const Microbatches& microbatches,
                               double loss_scale,
                               Tensor& flat_gradient,
                               const model::Stage::OnUnitDone& on_done) {
  const auto num_microbatches = static_cast<int64_t>(microbatches.size());
  const plan::PipelinePlan& own_plan = options_.site.pipelines[pipeline_idx_];
  const std::vector<Turn> turns =
      one_forward_one_backward(plan::in_flight(own_plan, stage_idx_), num_microbatches);
  const auto windows_of = [&](const Turn& turn) {
    return microbatches[static_cast<size_t>(turn.microbatch_idx)];
  };
  std::vector<model::StagePass> passes(microbatches.size());
  std::vector<Tensor> losses, peaks;  // read at the end: reading one waits for the device
  size_t num_expected = 0;
  PipelineResult result;
  for (size_t i = 0; i < turns.size(); ++i) {
    for (; num_expected < std::min(turns.size(), i + kTurnsAhead); ++num_expected) {
      const Turn& next = turns[num_expected];
      const int64_t rows = own_rows(sequence_length, windows_of(next));
      if (next.is_forward && !is_first()) expect(stage_idx_ - 1, rows, kForward);
      if (!next.is_forward && !is_last()) expect(stage_idx_ + 1, rows, kBackward);
    }
    const Turn& turn = turns[i];
    give_sign();
    model::StagePass& pass = passes[static_cast<size_t>(turn.microbatch_idx)];
    if (turn.is_forward) {
      const model::StageInput input = input_of(source, sequence_length, windows_of(turn));
      pass = timed(*this, result.forward_s, [&] { return stage_.forward(input); });
      peaks.push_back(pass.peak);
      if (is_last()) {
        losses.push_back(pass.output.detach());
      } else {
        send(pass.output, stage_idx_ + 1, kForward);
        pass.output = Tensor();
      }
      continue;
    }
    Tensor gradient;
    if (!is_last()) {
      gradient = take(stage_idx_ + 1, own_rows(sequence_length, windows_of(turn)), kBackward);
    }
    const bool is_whole = turn.microbatch_idx + 1 == num_microbatches;
    const auto tell_done = [&](int64_t unit) {
      if (is_whole) on_done(unit);
    };
    const Tensor to_previous = timed(*this, result.backward_s, [&] {
      return stage_.backward(std::move(pass), gradient, loss_scale, flat_gradient, tell_done);
    });
    pass = model::StagePass();  // what is left of it, the loss and its graph, takes memory
    if (!is_first()) send(to_previous, stage_idx_ - 1, kBackward);
  }
  for (const double loss : read_scalars(losses)) result.loss_sum += loss;
  for (const double peak : read_scalars(peaks)) {
    if (!(peak <= result.peak)) result.peak = peak;  // NaN stays
    if (std::isnan(peak)) break;
  }
  if (options_.courier != nullptr) {
    options_.courier->flush();
    result.waited_s = options_.courier->waited_s();
  }
  return result;
}

PipelineResult Pipeline::evaluate(const TokenSource& source,
                                  int64_t sequence_length,
                                  const Microbatches& microbatches) {
  const torch::NoGradGuard no_grad;
  PipelineResult result;
  for (const std::span<const int64_t> windows : microbatches) {
    give_sign();
    if (!is_first()) expect(stage_idx_ - 1, own_rows(sequence_length, windows), kForward);
    const model::StagePass pass = stage_.forward(input_of(source, sequence_length, windows));
    if (is_last()) {
      result.loss_sum += pass.output.item<double>();
    } else {
      send(pass.output, stage_idx_ + 1, kForward);
    }
  }
  if (options_.courier != nullptr) options_.courier->flush();
  return result;
}

}  // namespace pelago::train
