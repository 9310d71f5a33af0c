#include "plan/planner/across/joint_search.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "plan/cost/device/profile.h"
#include "plan/cost/lines.h"
#include "plan/planner/site_run.h"

namespace pelago::plan {

namespace {

// A microbatch that comes late finds another one to compute: a quarter more under way than the
// line's mean time asks for.
constexpr double kSpare = 1.25;

/// Kinds in site order, ranks through all sites.
SiteProblem join_problems(const std::vector<std::vector<SiteDevice>>& sites,
                          const JobConfig& job,
                          std::vector<size_t>& site_of_kind) {
  SiteProblem joint;
  int first_rank = 0;
  for (size_t i = 0; i < sites.size(); ++i) {
    SiteProblem own = make_problem(
        sites[i], sizes_of(job, job.data.sequence_length), job.train, job.train.batch_sequences);
    for (Kind& kind : own.kinds) {
      for (std::vector<int>& node : kind.nodes) {
        for (int& rank : node) rank += first_rank;
      }
      std::map<int, int> node_of;
      for (const auto& [rank, node] : kind.node_of) node_of[rank + first_rank] = node;
      kind.node_of = std::move(node_of);
      joint.kinds.push_back(std::move(kind));
      site_of_kind.push_back(i);
    }
    joint.sizes = own.sizes;
    first_rank += static_cast<int>(sites[i].size());
  }
  joint.train = job.train;
  joint.batch = job.train.batch_sequences;
  return joint;
}

class JointSearch {
 public:
  JointSearch(const std::vector<std::vector<SiteDevice>>& sites,
              const FleetConfig& fleet,
              const JobConfig& job)
      : fleet_(fleet), job_(job), problem_(join_problems(sites, job, site_of_kind_)) {}

  std::optional<JointLayout> find() {
    for (const int64_t width : {1, 2, 4, 8}) {
      const int64_t asked = job_.train.tensor_parallel;
      if (asked > 0 ? width == asked : width == 1 || !best_) look_at(width);
    }
    if (best_) best_->problem = problem_;
    return std::move(best_);
  }

 private:
  void look_at(int64_t width) {
    if (width > 1 && !can_be_cut(problem_.sizes, width)) return;
    std::vector<std::vector<std::vector<int>>> sets;  // by kind
    int64_t together = 0, num_sets = 0;
    for (const Kind& kind : problem_.kinds) {
      sets.push_back(tensor_sets(kind, width));
      const auto count = static_cast<int64_t>(sets.back().size());
      if (count == 0 || !kind.profile.allows(width)) return;
      together = std::gcd(together, count);
      num_sets += count;
    }
    for (int64_t num_pipelines = 1; num_pipelines <= together; ++num_pipelines) {
      const int64_t num_stages = num_sets / num_pipelines;
      const bool is_possible = together % num_pipelines == 0 && num_pipelines <= problem_.batch &&
                               num_stages <= problem_.sizes.num_blocks &&
                               (job_.train.stages == 0 || job_.train.stages == num_stages);
      if (!is_possible) continue;
      for (int64_t microbatch = job_.train.microbatch_sequences; microbatch >= 1;
           microbatch = microbatch > 1 && !job_.train.exact_microbatch ? (microbatch + 1) / 2 : 0) {
        try_cut(sets, width, num_pipelines, microbatch);
      }
    }
  }

  void try_cut(const std::vector<std::vector<std::vector<int>>>& sets,
               int64_t width,
               int64_t num_pipelines,
               int64_t microbatch) {
    Composition composition;
    for (const auto& of_kind : sets) {
      composition.push_back(static_cast<int64_t>(of_kind.size()) / num_pipelines);
    }
    const ShapeOptions options{.widths = std::vector<int64_t>(sets.size(), width)};
    BlockLimits limits;
    auto shape = make_shape(problem_, composition, options, microbatch, limits);
    if (!shape) return;
    JointLayout found;
    for (int64_t i = 0; i < num_pipelines; ++i) {
      found.shares.push_back(problem_.batch / num_pipelines +
                             (i < problem_.batch % num_pipelines ? 1 : 0));
    }
    // Nobody is to choose another microbatch than the one whose depths these are.
    shape->pace = {
        .latency = {}, .periods = {{.fixed_s = 1}}, .microbatch_max = microbatch, .played = {}};
    const SiteLayout near = lay_out(*shape, sets, composition, num_pipelines);
    add_lines(*shape);
    if (!choose_depths(*shape, microbatch, found.shares.front(), options.traits())) return;
    found.layout = lay_out(*shape, sets, composition, num_pipelines);
    const SiteTime time = simulate_site(site_run(problem_, found.layout, found.shares));
    found.line_s = step_line_s(*shape);
    found.step_s = time.step_s + found.line_s;
    found.near_step_s = simulate_site(site_run(problem_, near, found.shares)).step_s;
    found.layout.sequences_a_second = static_cast<double>(problem_.batch) / found.step_s;
    found.busiest_line_mbit_s = 8 * busiest_bytes(*shape) / 1e6 / found.step_s;
    if (!best_ || found.step_s < best_->step_s) best_ = std::move(found);
  }

  /// num_pipelines of this shape, and who is which stage of which.
  static SiteLayout lay_out(const PipelineShape& shape,
                            const std::vector<std::vector<std::vector<int>>>& sets,
                            const Composition& composition,
                            int64_t num_pipelines) {
    SiteLayout layout;
    for (int64_t i = 0; i < num_pipelines; ++i) {
      SiteLayout::Pipeline pipeline{shape, {}};
      for (size_t kind = 0; kind < sets.size(); ++kind) {
        for (int64_t k = 0; k < composition[kind]; ++k) {
          pipeline.ranks.push_back(sets[kind][static_cast<size_t>(i * composition[kind] + k)]);
        }
      }
      layout.pipelines.push_back(std::move(pipeline));
    }
    return layout;
  }

  const FleetLink* line_behind(const PipelineShape& shape, size_t stage) const {
    if (stage + 1 >= shape.stages.size()) return nullptr;
    const size_t here = site_of_kind_[shape.stages[stage].kind_idx];
    const size_t there = site_of_kind_[shape.stages[stage + 1].kind_idx];
    if (here == there) return nullptr;
    return fleet_.link_between(fleet_.sites[here].name, fleet_.sites[there].name);
  }

  double hidden_bytes(const PipelineShape& shape, size_t stage) const {
    const Kind& kind = problem_.kinds[shape.stages[stage].kind_idx];
    return problem_.sizes.tokens * problem_.sizes.hidden *
           activation_bytes(job_.sites.activation_bits, kind.profile.dtype);
  }

  /// Of a step, each way, over the line that carries most.
  double busiest_bytes(const PipelineShape& shape) const {
    double most = 0;
    const double embedding_bytes =
        problem_.sizes.is_tied ? 4 * problem_.sizes.vocab * problem_.sizes.hidden : 0;
    for (size_t stage = 0; stage < shape.stages.size(); ++stage) {
      if (line_behind(shape, stage) == nullptr) continue;
      const double hidden = hidden_bytes(shape, stage) * static_cast<double>(problem_.batch);
      most = std::max(most, hidden + embedding_bytes);
    }
    return most;
  }

  void add_lines(PipelineShape& shape) const {
    for (size_t stage = 0; stage < shape.stages.size(); ++stage) {
      const FleetLink* line = line_behind(shape, stage);
      if (line == nullptr) continue;
      StageCosts& costs = shape.costs[stage];
      costs.message = {line_costs(*line).way_s, 0};
      costs.line = {0, hidden_bytes(shape, stage) * line_costs(*line).slower_byte_s()};
    }
  }

  /// As many under way as cover the lines, or as memory allows. False if the usual number does not
  /// fit.
  bool choose_depths(PipelineShape& shape,
                     int64_t microbatch,
                     int64_t share,
                     const SharedTraits& traits) const {
    const auto sequences = static_cast<double>(microbatch);
    double period_s = 0;
    for (const StageCosts& costs : shape.costs) {
      period_s = std::max(period_s, costs.forward.at(sequences) + costs.backward.at(sequences));
    }
    const int64_t num_microbatches = (share + microbatch - 1) / microbatch;
    int64_t wanted = 0, given_behind = 0;
    for (size_t stage = shape.stages.size(); stage-- > 0;) {
      ++wanted;
      if (line_behind(shape, stage) != nullptr) {
        const StageCosts& costs = shape.costs[stage];
        const double copies_s =
            costs.copy.at(sequences) + shape.costs[stage + 1].copy.at(sequences);
        const double way_s = copies_s + costs.line.at(sequences) + costs.message.at(sequences);
        wanted += std::llround(std::ceil(kSpare * 2 * way_s / period_s));
      }
      StageChoice& choice = shape.stages[stage];
      const double has = problem_.kinds[choice.kind_idx].memory_bytes;
      choice.in_flight = std::max(std::min(wanted, num_microbatches), given_behind);
      const auto needs = [&] {
        return memory_of_stage(problem_, shape.stages, stage, microbatch, num_microbatches, traits)
            .total();
      };
      while (has > 0 && choice.in_flight > given_behind && choice.in_flight > 1 && needs() > has) {
        --choice.in_flight;
      }
      if (has > 0 && needs() > has) return false;
      given_behind = choice.in_flight;
      shape.costs[stage].in_flight = choice.in_flight;
    }
    return true;
  }

  double step_line_s(const PipelineShape& shape) const {
    double line_s = 0;
    for (size_t stage = 0; stage < shape.stages.size(); ++stage) {
      const FleetLink* line = line_behind(shape, stage);
      if (line != nullptr) line_s = std::max(line_s, step_end_s(*line, problem_.sizes));
    }
    return line_s;
  }

  const FleetConfig& fleet_;  // outlives this, as does the next
  const JobConfig& job_;
  std::vector<size_t> site_of_kind_;
  SiteProblem problem_;
  std::optional<JointLayout> best_;
};

}  // namespace

double activation_bytes(int activation_bits, const std::string& dtype) {
  if (activation_bits == 8) return 1 + 4.0 / 64;  // a scale for 64 values
  return activation_bits == 16 ? 2 : value_bytes(dtype);
}

std::optional<JointLayout> find_joint_layout(const std::vector<std::vector<SiteDevice>>& sites,
                                             const FleetConfig& fleet,
                                             const JobConfig& job) {
  return JointSearch(sites, fleet, job).find();
}

}  // namespace pelago::plan
