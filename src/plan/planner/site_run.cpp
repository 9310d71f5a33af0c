#include "plan/planner/site_run.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "plan/planner/cost/links.h"
#include "plan/planner/cost/profile.h"

namespace pelago::plan {

namespace {

// Neighbours with one group share a bucket up to this many values, as in the trainer.
constexpr double kBucketValues = 4 << 20;

using Holders = std::vector<std::pair<size_t, size_t>>;  // pipeline, stage

/// Units of a model, as backward finishes them: 1 + L is final norm and head, 1 + b block b, 0 the
/// embedding.
struct Unit {
  int64_t unit_idx = 0;
  double values = 0;
  Holders holders;
};

/// The stage of a pipeline that holds this block.
size_t stage_of(const PipelineShape& shape, int64_t block_idx) {
  int64_t first = 0;
  for (size_t stage = 0; stage < shape.stages.size(); ++stage) {
    first += shape.stages[stage].shape.num_blocks;
    if (block_idx < first) return stage;
  }
  return shape.stages.size() - 1;
}

std::vector<Unit> units_of(const SiteProblem& problem, const SiteLayout& layout) {
  const ModelSizes& sizes = problem.sizes;
  const double table = sizes.vocab * sizes.hidden;
  std::vector<Unit> units;
  for (int64_t unit_idx = 1 + sizes.num_blocks; unit_idx >= 0; --unit_idx) {
    Unit unit{.unit_idx = unit_idx, .values = 0, .holders = {}};
    const bool is_head = unit_idx == 1 + sizes.num_blocks;
    unit.values = is_head        ? sizes.hidden + (sizes.is_tied ? 0 : table)
                  : unit_idx > 0 ? block_values(sizes, 1)
                                 : table;
    for (size_t i = 0; i < layout.pipelines.size(); ++i) {
      const PipelineShape& shape = layout.pipelines[i].shape;
      const size_t last = shape.stages.size() - 1;
      if (is_head) {
        unit.holders.emplace_back(i, last);
      } else if (unit_idx > 0) {
        unit.holders.emplace_back(i, stage_of(shape, unit_idx - 1));
      } else {
        unit.holders.emplace_back(i, 0);
        if (sizes.is_tied && last > 0) unit.holders.emplace_back(i, last);
      }
    }
    units.push_back(std::move(unit));
  }
  return units;
}

/// Which part of its backward pass a stage has done when this unit is whole.
double ready_ratio(const PipelineShape& shape, size_t stage_idx, int64_t unit_idx) {
  int64_t first = 0;
  for (size_t stage = 0; stage < stage_idx; ++stage) first += shape.stages[stage].shape.num_blocks;
  const int64_t num_blocks = shape.stages[stage_idx].shape.num_blocks;
  if (unit_idx == 0) return 1;
  const int64_t done = first + num_blocks - (unit_idx - 1);
  return std::clamp(static_cast<double>(done) / static_cast<double>(num_blocks), 0.0, 1.0);
}

struct BucketSeconds {
  double reduce_s = 0;
  double gather_s = 0;
};

/// The holders by vendor group: devices of one kind in one node have links of their own.
struct HolderGroup {
  double size = 0;
  double host_byte_s = 0, host_copy_s = 0, group_byte_s = 0;
};
struct Holding {
  std::vector<HolderGroup> groups;
  double num_ranks = 0;
  double weight_bytes = 2;
  int64_t width = 1'000'000;
  bool is_near = true;
};

Holding holding_of(const SiteProblem& problem, const SiteLayout& layout, const Holders& holders) {
  Holding holding;
  std::map<std::pair<size_t, int>, size_t> known;  // by kind and node
  for (const auto& [pipeline_idx, stage_idx] : holders) {
    const SiteLayout::Pipeline& pipeline = layout.pipelines[pipeline_idx];
    const StageChoice& stage = pipeline.shape.stages[stage_idx];
    const Kind& kind = problem.kinds[stage.kind_idx];
    const int node = kind.node_of.at(pipeline.ranks[stage_idx].front());
    const auto [found, is_new] = known.try_emplace({stage.kind_idx, node}, holding.groups.size());
    if (is_new) {
      holding.groups.push_back({.size = 0,
                                .host_byte_s = kind.profile.host_byte_s,
                                .host_copy_s = kind.profile.host_copy_s,
                                .group_byte_s = kind.profile.group_byte_s});
    }
    holding.groups[found->second].size += 1;
    holding.num_ranks += 1;
    holding.weight_bytes = std::max(holding.weight_bytes, value_bytes(kind.profile.dtype));
    holding.width = std::min(holding.width, stage.shape.width);
    holding.is_near = holding.is_near && kind.is_on_this_machine;
  }
  return holding;
}

/// Inside a group the chips' own links sum and spread, between groups each chip passes its part
/// through its host. Pieces of a bucket overlap, so the slowest way counts, and for one piece all
/// of them.
BucketSeconds bucket_seconds(const SiteProblem& problem,
                             const SiteLayout& layout,
                             double values,
                             const Holders& holders) {
  BucketSeconds seconds;
  if (holders.size() < 2) return seconds;
  constexpr double kPieceBytes = 4 << 20;
  const Holding holding = holding_of(problem, layout, holders);
  const double bytes = 4 * values / static_cast<double>(holding.width);
  const double num_pieces = std::max(1.0, std::ceil(bytes / kPieceBytes));
  const TransportCosts transport = transport_costs(holding.is_near);
  const double others = (holding.num_ranks - 1) / holding.num_ranks;
  const bool crosses = holding.groups.size() > 1;
  double longest_s = 0, all_s = 0, gather_s = 0;
  for (const HolderGroup& group : holding.groups) {
    const double inside_s = 2 * (group.size - 1) / group.size * bytes * group.group_byte_s;
    const double copy_s = bytes / group.size * group.host_byte_s + num_pieces * group.host_copy_s;
    const double across_s =
        2 * others * bytes / group.size * transport.byte_s + num_pieces * transport.message_s;
    const double slowest_s = crosses ? std::max({inside_s, copy_s, across_s}) : inside_s;
    const double sum_s = crosses ? inside_s + 2 * copy_s + across_s : inside_s;
    longest_s = std::max(longest_s, slowest_s);
    all_s = std::max(all_s, sum_s);
    const double weights = holding.weight_bytes * values / static_cast<double>(holding.width);
    gather_s = std::max(gather_s,
                        crosses ? weights * (group.host_byte_s + transport.byte_s)
                                : others * weights * group.group_byte_s);
  }
  seconds.reduce_s = longest_s + (all_s - longest_s) / num_pieces;
  if (layout.slices_optimizer) seconds.gather_s = gather_s;
  return seconds;
}

void add_reductions(const SiteProblem& problem, const SiteLayout& layout, SiteRun& run) {
  const std::vector<Unit> units = units_of(problem, layout);
  for (size_t first = 0; first < units.size();) {
    double values = units[first].values;
    size_t last = first;
    while (last + 1 < units.size() && units[last + 1].holders == units[first].holders &&
           values + units[last + 1].values <= kBucketValues) {
      values += units[++last].values;
    }
    const BucketSeconds seconds = bucket_seconds(problem, layout, values, units[first].holders);
    Reduction reduction;
    reduction.seconds = seconds.reduce_s;
    run.gather_s += seconds.gather_s;
    for (const auto& [pipeline_idx, stage_idx] : units[first].holders) {
      const PipelineShape& shape = layout.pipelines[pipeline_idx].shape;
      reduction.members.push_back(
          {pipeline_idx, stage_idx, ready_ratio(shape, stage_idx, units[last].unit_idx)});
    }
    if (reduction.members.size() > 1) run.reductions.push_back(std::move(reduction));
    first = last + 1;
  }
}

}  // namespace

int64_t microbatch_for(const SiteLayout& layout, size_t pipeline_idx, int64_t share) {
  return layout.pipelines[pipeline_idx].shape.pace.best_microbatch(share);
}

double optimizer_share(const SiteLayout& layout) {
  return layout.slices_optimizer ? 1 / static_cast<double>(layout.pipelines.size()) : 1;
}

SiteRun site_run(const SiteProblem& problem,
                 const SiteLayout& layout,
                 std::span<const int64_t> shares) {
  SiteRun run;
  int64_t num_ranks = 0;
  bool is_near = true;
  for (size_t i = 0; i < layout.pipelines.size(); ++i) {
    const PipelineShape& shape = layout.pipelines[i].shape;
    run.pipelines.push_back(
        {shape.costs, cut_microbatches(shares[i], microbatch_for(layout, i, shares[i]))});
    for (const StageChoice& stage : shape.stages) {
      num_ranks += stage.shape.width;
      is_near = is_near && problem.kinds[stage.kind_idx].is_on_this_machine;
    }
  }
  if (num_ranks > 1) run.agree_s = 4 * transport_costs(is_near).message_s;
  add_reductions(problem, layout, run);
  return run;
}

SiteTime fill_site(const SiteProblem& problem,
                   const SiteLayout& layout,
                   std::span<const int64_t> shares,
                   int64_t sequence_length,
                   SitePlan& site) {
  const SiteRun run = site_run(problem, layout, shares);
  const SiteTime time = simulate_site(run);
  site.pipelines.clear();
  site.slice_optimizer = layout.slices_optimizer;
  site.batch_sequences = std::accumulate(shares.begin(), shares.end(), int64_t{0});
  site.predicted_step_s = time.step_s;
  for (size_t i = 0; i < layout.pipelines.size(); ++i) {
    const SiteLayout::Pipeline& from = layout.pipelines[i];
    PipelinePlan pipeline;
    pipeline.sequences = shares[i];
    pipeline.microbatch = microbatch_for(layout, i, shares[i]);
    pipeline.predicted_step_s = time.pipelines[i].end_s;
    double all_busy_s = 0;
    for (const PipelineTime::Stage& stage : time.pipelines[i].stages) all_busy_s += stage.busy_s;
    const double tokens_s = static_cast<double>(shares[i] * sequence_length) / time.step_s;
    int64_t first_block = 0;
    for (size_t s = 0; s < from.shape.stages.size(); ++s) {
      const StageShape& shape = from.shape.stages[s].shape;
      pipeline.stages.push_back({.first_block = first_block,
                                 .last_block = first_block + shape.num_blocks,
                                 .ranks = from.ranks[s],
                                 .recompute = shape.recompute});
      first_block += shape.num_blocks;
      const double busy_s = time.pipelines[i].stages[s].busy_s;
      for (const int rank : from.ranks[s]) {
        DevicePlan& device = site.devices[static_cast<size_t>(rank)];
        device.predicted_step_s = busy_s + from.shape.costs[s].update_s;
        device.predicted_tokens_s =
            tokens_s * busy_s / all_busy_s / static_cast<double>(from.ranks[s].size());
        device.predicted_memory = memory_of_stage(problem,
                                                  from.shape.stages,
                                                  s,
                                                  pipeline.microbatch,
                                                  pipeline.num_microbatches(),
                                                  optimizer_share(layout));
      }
    }
    site.pipelines.push_back(std::move(pipeline));
  }
  return time;
}

}  // namespace pelago::plan
