#include "plan/planner/search/shape.h"

#include <algorithm>
#include <numeric>

#include "plan/cost/device/links.h"
#include "plan/cost/device/profile.h"
#include "plan/planner/search/few/variants.h"
#include "plan/planner/search/split.h"

namespace pelago::plan {

namespace {

double planned_memory(const SiteProblem& problem, const Kind& kind) {
  return (1 - problem.train.memory_reserve) * kind.memory_bytes;
}

/// A rank gives and gets its part of [N,D] four times a pass: in front of each half of a block the
/// ranks' tokens are gathered, behind it their sums are scattered.
LinearCost tensor_traffic(const ModelSizes& sizes, const DeviceProfile& profile, int64_t width) {
  if (width == 1) return {};
  constexpr double kTimes = 4;
  const auto members = static_cast<double>(width);
  const double bytes =
      value_bytes(profile.dtype) * sizes.tokens * sizes.hidden * (members - 1) / members;
  return {.fixed_s = kTimes * profile.call_s(members),
          .sequence_s = kTimes * bytes * profile.byte_s(members)};
}

/// Of a cost whose arithmetic is cut over the ranks, but whose starts of operators are not.
LinearCost cut(const LinearCost& cost, int64_t width) {
  return {cost.fixed_s, cost.sequence_s / static_cast<double>(width)};
}

/// Of one pipeline, if it had the whole batch.
int64_t most_microbatches(const SiteProblem& problem, int64_t microbatch) {
  return std::max<int64_t>((problem.batch + microbatch - 1) / microbatch, 1);
}

/// Times of a stage, without what it can hold.
StageLimits times_of(const SiteProblem& problem, const StageChoice& stage, int64_t microbatch) {
  const Kind& kind = problem.kinds[stage.kind_idx];
  const auto sequences = static_cast<double>(microbatch);
  const BlockCosts block = block_costs(problem.sizes, kind.profile, stage.shape.width);
  StageLimits limits;
  LinearCost rest = kind.profile.stage_forward;
  rest += kind.profile.stage_backward;
  limits.fixed_s = cut(rest, stage.shape.width).at(sequences);
  limits.block_s = block.forward.at(sequences) + block.backward.at(sequences);
  limits.recomputed_block_s = limits.block_s + block.forward.at(sequences);
  if (stage.shape.has_embedding) {
    limits.fixed_s += embedding_cost(kind.profile, stage.shape.width).at(sequences);
  }
  if (stage.shape.has_head) {
    limits.fixed_s += head_cost(kind.profile, stage.shape.width).at(sequences);
  }
  return limits;
}

void fill_most(const SiteProblem& problem,
               std::vector<StageChoice>& stages,
               size_t stage_idx,
               int64_t microbatch,
               const SharedTraits& traits,
               BlockLimits& known,
               StageLimits& limits) {
  const auto most_blocks = [&](bool recompute) {
    stages[stage_idx].shape.recompute = recompute;
    return known.most_blocks(problem, stages, stage_idx, microbatch, traits);
  };
  limits.blocks_max = limits.recomputed_blocks_max = 0;
  if (problem.train.recompute != "always") limits.blocks_max = most_blocks(false);
  // Where all blocks fit without, nobody asks.
  if (problem.train.recompute != "never" && limits.blocks_max < problem.sizes.num_blocks) {
    limits.recomputed_blocks_max = most_blocks(true);
  }
}

std::vector<StageChoice> empty_stages(const Composition& composition, const ShapeOptions& options) {
  std::vector<size_t> kinds;
  for (size_t kind_idx = 0; kind_idx < composition.size(); ++kind_idx) {
    kinds.insert(kinds.end(), static_cast<size_t>(composition[kind_idx]), kind_idx);
  }
  return stages_in_order(kinds, options);
}

/// Limits of all stages; empty if one of them cannot hold a block.
std::vector<StageLimits> all_limits(const SiteProblem& problem,
                                    std::vector<StageChoice>& stages,
                                    const ShapeOptions& options,
                                    int64_t microbatch,
                                    BlockLimits& known) {
  std::vector<StageLimits> limits;
  const SharedTraits traits = options.traits();
  limits.reserve(stages.size());
  const std::vector<StageChoice> given = stages;  // what is looked at changes on the way
  for (size_t i = 0; i < stages.size(); ++i) {
    limits.push_back(i > 0 && given[i].is_like(given[i - 1])
                         ? limits.back()
                         : times_of(problem, given[i], microbatch));
    fill_most(problem, stages, i, microbatch, traits, known, limits.back());
    if (limits.back().most() == 0) return {};
  }
  return limits;
}

PipelineShape shape_of_cut(const SiteProblem& problem,
                           std::vector<StageChoice> stages,
                           const std::vector<StageLimits>& limits,
                           const std::vector<int64_t>& blocks,
                           int64_t microbatch,
                           const SharedTraits& traits) {
  for (size_t i = 0; i < stages.size(); ++i) {
    StageShape& stage = stages[i].shape;
    stage.num_blocks = blocks[i];
    stage.recompute = stage.num_blocks > limits[i].blocks_max;
  }
  return finish_shape(problem, std::move(stages), microbatch, traits);
}

/// Of stages whose blocks the job names.
bool has_room(const std::vector<StageLimits>& limits, const std::vector<int64_t>& blocks) {
  if (blocks.size() != limits.size()) return false;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (blocks[i] > limits[i].most()) return false;
  }
  return true;
}

}  // namespace

BlockCosts block_costs(const ModelSizes& sizes, const DeviceProfile& profile, int64_t width) {
  if (const CutProfile* measured = profile.cut_of(width)) {
    return {measured->block_forward, measured->block_backward};
  }
  const LinearCost traffic = tensor_traffic(sizes, profile, width);
  BlockCosts costs{cut(profile.block_forward, width), cut(profile.block_backward, width)};
  costs.forward += traffic;
  costs.backward += traffic;
  return costs;
}

LinearCost embedding_cost(const DeviceProfile& profile, int64_t width) {
  const CutProfile* measured = profile.cut_of(width);
  return measured != nullptr ? measured->embedding : cut(profile.embedding, width);
}
LinearCost head_cost(const DeviceProfile& profile, int64_t width) {
  const CutProfile* measured = profile.cut_of(width);
  return measured != nullptr ? measured->head : cut(profile.head, width);
}

int64_t num_stages(const Composition& composition) {
  return std::accumulate(composition.begin(), composition.end(), int64_t{0});
}

StageCosts stage_costs(const SiteProblem& problem,
                       const StageChoice& stage,
                       const StageChoice* behind,
                       double optimizer_share) {
  const Kind& kind = problem.kinds[stage.kind_idx];
  const DeviceProfile& profile = kind.profile;
  const auto num_blocks = static_cast<double>(stage.shape.num_blocks);
  const BlockCosts block = block_costs(problem.sizes, kind.profile, stage.shape.width);
  StageCosts costs;
  costs.forward = block.forward.times(num_blocks);
  costs.backward = block.backward.times(num_blocks);
  const CutProfile* measured = profile.cut_of(stage.shape.width);
  // What was measured of several together has their traffic in it, unknown how much.
  costs.forward_wait =
      measured != nullptr
          ? LinearCost{}
          : tensor_traffic(problem.sizes, profile, stage.shape.width).times(num_blocks);
  costs.backward_wait = costs.forward_wait;
  if (stage.shape.recompute) {
    costs.backward += costs.forward;
    costs.backward_wait += costs.forward_wait;
  }
  costs.forward += cut(profile.stage_forward, stage.shape.width);
  costs.backward += cut(profile.stage_backward, stage.shape.width);
  if (stage.shape.has_embedding) costs.backward += embedding_cost(profile, stage.shape.width);
  // The head's gradients are made with its loss; its stage goes backward at once anyway.
  if (stage.shape.has_head) costs.forward += head_cost(profile, stage.shape.width);
  const double parameter_s =
      measured != nullptr ? measured->update_parameter_s : profile.update_parameter_s;
  costs.update_s = profile.update_s +
                   profile.update_run_s * update_runs(problem.sizes, stage.shape) +
                   parameter_s * optimizer_share * held_values(problem.sizes, stage.shape) +
                   profile.update_block_s * num_blocks;
  const bool is_alone = stage.shape.has_embedding && stage.shape.has_head;
  if (is_alone) return costs;
  const double hidden_bytes = problem.sizes.tokens * problem.sizes.hidden *
                              value_bytes(profile.dtype) / static_cast<double>(stage.shape.width);
  costs.copy = {profile.host_copy_s, hidden_bytes * profile.host_byte_s};
  if (behind == nullptr) return costs;
  const TransportCosts transport =
      slower_of(kind.transport, problem.kinds[behind->kind_idx].transport);
  costs.message = {transport.message_s, hidden_bytes * transport.byte_s};
  return costs;
}

MemoryPlan memory_of_stage(const SiteProblem& problem,
                           const std::vector<StageChoice>& stages,
                           size_t stage_idx,
                           int64_t microbatch,
                           int64_t num_microbatches,
                           const SharedTraits& traits) {
  const StageChoice& stage = stages[stage_idx];
  const Kind& kind = problem.kinds[stage.kind_idx];
  const auto behind = static_cast<int64_t>(stages.size() - stage_idx);
  const StageLoad load{
      .microbatch = microbatch,
      .in_flight = std::min(stage.in_flight > 0 ? stage.in_flight : behind, num_microbatches),
      .optimizer_share = traits.optimizer_share,
      .value_bytes = value_bytes(kind.profile.dtype),
      .is_half = kind.profile.dtype == "fp16",
      .is_alone = stages.size() == 1,
      .is_scattered = traits.is_scattered,
      .has_fused_kernels = kind.is_on_this_machine,
      .has_muon = problem.train.has_muon()};
  return stage_memory(problem.sizes, stage.shape, load);
}

PipelineShape finish_shape(const SiteProblem& problem,
                           std::vector<StageChoice> stages,
                           int64_t microbatch,
                           const SharedTraits& traits) {
  PipelineShape shape;
  shape.stages = std::move(stages);
  double update_s = 0;
  const size_t num_stages = shape.stages.size();
  shape.costs.reserve(num_stages);
  for (size_t i = 0; i < num_stages; ++i) {
    const StageChoice* behind = i + 1 < num_stages ? &shape.stages[i + 1] : nullptr;
    // Of the stage behind only the kind matters, which is the same one as this stage had.
    const bool is_known = i > 0 && behind != nullptr &&
                          shape.stages[i].is_like(shape.stages[i - 1]) &&
                          behind->kind_idx == shape.stages[i].kind_idx;
    shape.costs.push_back(
        is_known ? shape.costs.back()
                 : stage_costs(problem, shape.stages[i], behind, traits.optimizer_share));
    update_s = std::max(update_s, shape.costs.back().update_s);
  }
  shape.pace = pace_of(shape.costs, microbatch, update_s);
  shape.pace.is_exact = problem.train.exact_microbatch;
  return shape;
}

bool fits(const SiteProblem& problem,
          const std::vector<StageChoice>& stages,
          int64_t microbatch,
          const SharedTraits& traits) {
  for (size_t i = 0; i < stages.size(); ++i) {
    const double has = problem.kinds[stages[i].kind_idx].memory_bytes;
    if (has <= 0) continue;
    const double needed =
        memory_of_stage(
            problem, stages, i, microbatch, most_microbatches(problem, microbatch), traits)
            .total();
    if (needed > planned_memory(problem, problem.kinds[stages[i].kind_idx])) return false;
  }
  return true;
}

std::optional<PipelineShape> make_shape(const SiteProblem& problem,
                                        const Composition& composition,
                                        const ShapeOptions& options,
                                        int64_t microbatch,
                                        BlockLimits& known) {
  std::vector<StageChoice> stages = empty_stages(composition, options);
  const std::vector<StageLimits> limits = all_limits(problem, stages, options, microbatch, known);
  if (limits.empty()) return std::nullopt;
  const std::vector<int64_t>& asked = problem.train.blocks_by_stage;
  if (!asked.empty()) {
    if (!has_room(limits, asked)) return std::nullopt;
    return shape_of_cut(problem, std::move(stages), limits, asked, microbatch, options.traits());
  }
  const auto blocks = split_blocks(limits, problem.sizes.num_blocks);
  if (!blocks) return std::nullopt;
  return shape_of_cut(problem, std::move(stages), limits, *blocks, microbatch, options.traits());
}

std::vector<StageChoice> stages_in_order(const std::vector<size_t>& kinds,
                                         const ShapeOptions& options) {
  std::vector<StageChoice> stages;
  for (const size_t kind : kinds) stages.push_back({kind, {.width = options.widths[kind]}});
  stages.front().shape.has_embedding = true;
  stages.back().shape.has_head = true;
  return stages;
}

std::vector<PipelineShape> make_shapes(const SiteProblem& problem,
                                       const std::vector<StageChoice>& stages,
                                       const ShapeOptions& options,
                                       int64_t microbatch,
                                       size_t num_cuts,
                                       BlockLimits& known) {
  std::vector<StageChoice> empty = stages;
  const std::vector<StageLimits> limits = all_limits(problem, empty, options, microbatch, known);
  std::vector<PipelineShape> shapes;
  if (limits.empty()) return shapes;
  const std::vector<int64_t>& asked = problem.train.blocks_by_stage;
  if (!asked.empty()) {
    if (has_room(limits, asked)) {
      shapes.push_back(shape_of_cut(problem, empty, limits, asked, microbatch, options.traits()));
    }
    return shapes;
  }
  const size_t most = stages.size() == 1 ? 1 : num_cuts;
  for (const std::vector<int64_t>& blocks :
       split_variants(limits, problem.sizes.num_blocks, most)) {
    shapes.push_back(shape_of_cut(problem, empty, limits, blocks, microbatch, options.traits()));
  }
  return shapes;
}

int64_t BlockLimits::most_blocks(const SiteProblem& problem,
                                 std::vector<StageChoice>& stages,
                                 size_t stage_idx,
                                 int64_t microbatch,
                                 const SharedTraits& traits) {
  StageChoice& stage = stages[stage_idx];
  const int64_t num_blocks = problem.sizes.num_blocks;
  const int64_t num_microbatches = most_microbatches(problem, microbatch);
  const auto behind = static_cast<int64_t>(stages.size() - stage_idx);
  const int64_t role = (stage.shape.has_embedding ? 1 : 0) + (stage.shape.has_head ? 2 : 0) +
                       (stage.shape.recompute ? 4 : 0);
  const int64_t in_flight =
      std::min(stage.in_flight > 0 ? stage.in_flight : behind, num_microbatches);
  // Neither number comes near a million.
  const uint64_t key = (static_cast<uint64_t>(stage.kind_idx * 8) + static_cast<uint64_t>(role))
                           << 40 |
                       static_cast<uint64_t>(microbatch) << 20 | static_cast<uint64_t>(in_flight);
  const auto [found, is_new] = known_.try_emplace(key, 0);
  if (!is_new) return found->second;
  const Kind& kind = problem.kinds[stage.kind_idx];
  const auto fits_blocks = [&](int64_t blocks) {
    stage.shape.num_blocks = blocks;
    const double needed =
        memory_of_stage(problem, stages, stage_idx, microbatch, num_microbatches, traits).total();
    return kind.memory_bytes <= 0 || needed <= planned_memory(problem, kind);
  };
  int64_t enough = 0;
  if (fits_blocks(num_blocks)) {
    enough = num_blocks;
  } else {
    for (int64_t beyond = num_blocks; beyond - enough > 1;) {
      const int64_t middle = enough + (beyond - enough) / 2;
      (fits_blocks(middle) ? enough : beyond) = middle;
    }
  }
  return found->second = enough;
}

ShapeBook::ShapeBook(const SiteProblem& problem, ShapeOptions options)
    : problem_(&problem), options_(std::move(options)) {}

const std::vector<PipelineShape>& ShapeBook::shapes(const Composition& composition) {
  const auto [found, is_new] = known_.try_emplace(composition);
  if (!is_new) return found->second;
  std::vector<PipelineShape>& shapes = found->second;
  if (options_.is_thorough) {
    return shapes = shape_variants(*problem_, composition, options_, limits_);
  }
  const auto make = [&](int64_t microbatch) {
    return make_shape(*problem_, composition, options_, microbatch, limits_);
  };
  if (problem_->train.exact_microbatch) {
    if (auto shape = make(problem_->train.microbatch_sequences))
      shapes.push_back(std::move(*shape));
    return shapes;
  }
  // What fits with some microbatch fits with every smaller one.
  std::optional<PipelineShape> largest;
  int64_t fits = 0;
  for (int64_t too_many = problem_->train.microbatch_sequences + 1, next = too_many - 1; next > 0;
       next = fits + (too_many - fits) / 2) {
    if (next == fits) break;
    auto shape = make(next);
    if (shape) {
      fits = next;
      largest = std::move(shape);
    } else {
      too_many = next;
    }
  }
  if (!largest) return shapes;
  shapes.push_back(std::move(*largest));
  for (int64_t microbatch = fits / 2; microbatch >= 1; microbatch /= 2) {
    if (auto shape = make(microbatch)) shapes.push_back(std::move(*shape));
  }
  return shapes;
}

const PipelineShape& fastest_for(const std::vector<PipelineShape>& shapes, int64_t sequences) {
  // The first has the largest microbatches, which suit any share; another must be worth it.
  constexpr double kWorthIt = 1 - 1e-3;
  const PipelineShape* fastest = &shapes.front();
  for (const PipelineShape& shape : shapes) {
    if (shape.pace.time_s(sequences) < kWorthIt * fastest->pace.time_s(sequences)) {
      fastest = &shape;
    }
  }
  return *fastest;
}

}  // namespace pelago::plan
