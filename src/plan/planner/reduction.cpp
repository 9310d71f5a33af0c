#include "plan/planner/reduction.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "plan/cost/device/links.h"
#include "plan/cost/device/profile.h"

namespace pelago::plan {

namespace {

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
  double arrive_s = 0;
  double gather_s = 0;
};

/// The holders by vendor group: devices of one kind in one node have links of their own.
struct HolderGroup {
  double size = 0;
  const DeviceProfile* profile = nullptr;
};
struct Holding {
  std::vector<HolderGroup> groups;
  double num_ranks = 0;
  double weight_bytes = 2;
  int64_t width = 1'000'000;
  TransportCosts transport;
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
      holding.groups.push_back({.size = 0, .profile = &kind.profile});
    }
    holding.groups[found->second].size += 1;
    holding.num_ranks += 1;
    holding.weight_bytes = std::max(holding.weight_bytes, value_bytes(kind.profile.dtype));
    holding.width = std::min(holding.width, stage.shape.width);
    holding.transport = slower_of(holding.transport, kind.transport);
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
  const TransportCosts& transport = holding.transport;
  const double others = (holding.num_ranks - 1) / holding.num_ranks;
  const bool crosses = holding.groups.size() > 1;
  const double weights = holding.weight_bytes * values / static_cast<double>(holding.width);
  for (const HolderGroup& group : holding.groups) {
    // Half of it before the hosts' part, half of it after.
    const DeviceProfile& profile = *group.profile;
    const double byte_s = profile.byte_s(group.size);
    const double one_call_s = profile.call_s(group.size) + profile.reduce_place_s;
    const double inside_s = (group.size - 1) / group.size * bytes * byte_s;
    const double copy_s =
        bytes / group.size * profile.host_byte_s + num_pieces * profile.host_copy_s;
    const double across_s =
        2 * others * bytes / group.size * transport.byte_s + num_pieces * transport.message_s;
    if (!crosses) {
      seconds.reduce_s = 2 * inside_s + one_call_s;
      seconds.gather_s = others * weights * byte_s + one_call_s;
      continue;
    }
    const double slowest_s = std::max({inside_s, copy_s, across_s});
    const double before_s = inside_s + copy_s + across_s;
    // A group's own collective is called for each piece, before the hosts' part and after it.
    const double call_s = group.size > 1 ? one_call_s : 0;
    seconds.reduce_s = std::max(
        seconds.reduce_s, slowest_s + (before_s - slowest_s) / num_pieces + num_pieces * call_s);
    seconds.arrive_s = std::max(seconds.arrive_s, (copy_s + inside_s) / num_pieces + call_s);
    // Own slices go out while those of others come in.
    seconds.gather_s = std::max(
        seconds.gather_s, others * weights * profile.host_byte_s + weights * transport.byte_s);
  }
  // A group's own collectives stand in one queue: the next bucket's first waits for this one's
  // last.
  const bool has_queue = crosses && holding.groups.size() < static_cast<size_t>(holding.num_ranks);
  if (has_queue) seconds.reduce_s += std::exchange(seconds.arrive_s, 0);
  if (!layout.slices_optimizer) seconds.gather_s = 0;
  return seconds;
}

/// How long the holders of a unit need to add it up, if each kind is in one node. counts: holders
/// by kind. values: of one holder, by kind.
double unit_reduction_s(const SiteProblem& problem,
                        const std::vector<double>& counts,
                        const std::vector<double>& values) {
  double all = 0;
  int num_groups = 0;
  for (const double count : counts) {
    all += count;
    num_groups += count > 0 ? 1 : 0;
  }
  double slowest_s = 0;
  for (size_t kind = 0; kind < counts.size() && all > 1; ++kind) {
    if (counts[kind] == 0) continue;
    const DeviceProfile& profile = problem.kinds[kind].profile;
    const double inside_s =
        2 * (counts[kind] - 1) / counts[kind] * 4 * values[kind] * profile.byte_s(counts[kind]);
    const double transport_s = problem.kinds[kind].transport.byte_s;
    const double across_s = 4 * values[kind] / counts[kind] *
                            std::max(profile.host_byte_s, 2 * (all - 1) / all * transport_s);
    slowest_s = std::max({slowest_s, inside_s, num_groups > 1 ? across_s : 0});
  }
  return slowest_s;
}

/// As the trainer cuts buckets: a block whose first matrix finds room in the bucket of its
/// neighbours joins them as a whole, the embedding nobody, for they would wait for the very end.
bool has_room(const SiteProblem& problem,
              const SiteLayout& layout,
              const Unit& unit,
              double values,
              double bucket_values) {
  if (unit.unit_idx == 0) return false;
  const double wanted = values + problem.sizes.hidden * problem.sizes.query;
  if (wanted <= bucket_values) return true;
  // A rank has its own part of what is cut, and fills its buckets with it. A site may have
  // thousands of holders, and mostly the first one decides.
  for (const auto& [pipeline_idx, stage_idx] : unit.holders) {
    const StageChoice& stage = layout.pipelines[pipeline_idx].shape.stages[stage_idx];
    if (wanted > bucket_values * static_cast<double>(stage.shape.width)) return false;
  }
  return true;
}

}  // namespace

void add_reductions(const SiteProblem& problem, const SiteLayout& layout, SiteRun& run) {
  const std::vector<Unit> units = units_of(problem, layout);
  double num_parameters = 0;
  for (const Unit& unit : units) num_parameters += unit.values;
  const double bucket_values = usual_bucket_values(num_parameters);
  for (size_t first = 0; first < units.size();) {
    double values = units[first].values;
    size_t last = first;
    while (last + 1 < units.size() && units[last + 1].holders == units[first].holders &&
           has_room(problem, layout, units[last + 1], values, bucket_values)) {
      values += units[++last].values;
    }
    const BucketSeconds seconds = bucket_seconds(problem, layout, values, units[first].holders);
    Reduction reduction;
    reduction.seconds = seconds.reduce_s;
    reduction.arrive_s = seconds.arrive_s;
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

double estimate_reduction_s(ShapeBook& book, const Layout& layout) {
  if (layout.num_pipelines() < 2) return 0;
  const SiteProblem& problem = book.problem();
  const auto num_blocks = static_cast<size_t>(problem.sizes.num_blocks);
  const double table_values = problem.sizes.vocab * problem.sizes.hidden;
  const std::vector<double> none(problem.kinds.size(), 0);
  std::vector<std::vector<double>> holders(num_blocks, none);
  std::vector<double> embedding_holders = none;
  for (const LayoutPart& part : layout.parts) {
    const auto count = static_cast<double>(part.count);
    size_t block_idx = 0;
    for (const StageChoice& stage : book.shapes(part.composition).front().stages) {
      if (stage.shape.has_embedding) embedding_holders[stage.kind_idx] += count;
      for (int64_t i = 0; i < stage.shape.num_blocks; ++i) {
        holders[block_idx++][stage.kind_idx] += count;
      }
    }
  }
  std::vector<double> block_s;
  std::vector<double> values;
  for (const int64_t width : layout.options.widths) {
    values.push_back(block_values(problem.sizes, static_cast<double>(width)));
  }
  for (const auto& counts : holders) block_s.push_back(unit_reduction_s(problem, counts, values));
  const double embedding_s =
      unit_reduction_s(problem, embedding_holders, std::vector<double>(none.size(), table_values));
  double longest_s = 0;
  for (const LayoutPart& part : layout.parts) {
    const PipelineShape& shape = book.shapes(part.composition).front();
    const auto microbatch = static_cast<double>(shape.pace.microbatch_max);
    size_t block_idx = 0;
    for (size_t i = 0; i < shape.stages.size(); ++i) {
      double all_s = shape.stages[i].shape.has_embedding ? embedding_s : 0;
      double last_s = all_s;
      for (int64_t k = 0; k < shape.stages[i].shape.num_blocks; ++k) {
        if (k == 0) last_s += block_s[block_idx];
        all_s += block_s[block_idx++];
      }
      const double hidden_s = shape.costs[i].backward.at(microbatch);
      longest_s = std::max({longest_s, last_s, all_s - hidden_s});
    }
  }
  return longest_s;
}

}  // namespace pelago::plan
