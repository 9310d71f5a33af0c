// A pipeline of given devices: how its blocks are cut, which stages recompute, and its pace.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <unordered_map>
#include <vector>

#include "plan/cost/memory.h"
#include "plan/pipeline_time.h"
#include "plan/planner/problem.h"
#include "plan/planner/search/pace.h"

namespace pelago::plan {

/// How many stages of each kind a pipeline has, in the order of SiteProblem::kinds, which is the
/// order of the stages too: like chips side by side.
using Composition = std::vector<int64_t>;
int64_t num_stages(const Composition& composition);

struct StageChoice {
  size_t kind_idx = 0;
  StageShape shape;
  int64_t in_flight = 0;  // microbatches it keeps at most; 0: one for each stage from it on
  /// Of one kind, role and cut: pipelines have many stages that differ by their place alone.
  bool is_like(const StageChoice& other) const {
    return kind_idx == other.kind_idx && shape == other.shape;
  }
};

struct PipelineShape {
  std::vector<StageChoice> stages;
  std::vector<StageCosts> costs;
  Pace pace;  // for shares in microbatches of at most pace.microbatch_max
};

/// What all pipelines of a site have alike that changes a stage's memory.
struct SharedTraits {
  double optimizer_share = 1;  // 1 / R if R pipelines slice it
  bool is_scattered = false;   // some stage is cut over several ranks
};

struct ShapeOptions {
  std::vector<int64_t> widths;  // devices a stage, by kind
  double optimizer_share = 1;
  bool is_thorough = false;  // every order of stages, several cuts of each
  SharedTraits traits() const {
    const bool is_cut =
        std::any_of(widths.begin(), widths.end(), [](int64_t width) { return width > 1; });
    return {.optimizer_share = optimizer_share, .is_scattered = is_cut};
  }
};

/// Of one block on one of `width` devices, with what these send one another.
struct BlockCosts {
  LinearCost forward, backward;
};
BlockCosts block_costs(const ModelSizes& sizes, const DeviceProfile& profile, int64_t width);
/// Both ways, as DeviceProfile has them.
LinearCost embedding_cost(const DeviceProfile& profile, int64_t width);
LinearCost head_cost(const DeviceProfile& profile, int64_t width);

/// What a stage costs.
StageCosts stage_costs(const SiteProblem& problem,
                       const StageChoice& stage,
                       const StageChoice* behind,
                       double optimizer_share);

/// Memory of one rank of stage stage_idx when so many sequences go at once and so many microbatches
/// come at all.
MemoryPlan memory_of_stage(const SiteProblem& problem,
                           const std::vector<StageChoice>& stages,
                           size_t stage_idx,
                           int64_t microbatch,
                           int64_t num_microbatches,
                           const SharedTraits& traits);

/// Costs and pace of stages whose blocks are given.
PipelineShape finish_shape(const SiteProblem& problem,
                           std::vector<StageChoice> stages,
                           int64_t microbatch,
                           const SharedTraits& traits);
/// Every stage has room for its blocks.
bool fits(const SiteProblem& problem,
          const std::vector<StageChoice>& stages,
          int64_t microbatch,
          const SharedTraits& traits);

/// How many blocks fit a stage at most, by what that hangs on: kind, place, microbatch,
/// microbatches under way. Compositions are many and stages alike, so what was found is kept. Of
/// one problem and one ShapeOptions.
class BlockLimits {
 public:
  /// Of stages[stage_idx], recomputing or not as it says; its num_blocks is changed.
  int64_t most_blocks(const SiteProblem& problem,
                      std::vector<StageChoice>& stages,
                      size_t stage_idx,
                      int64_t microbatch,
                      const SharedTraits& traits);

 private:
  std::unordered_map<uint64_t, int64_t> known_;
};

/// The best cut for microbatches of at most this many sequences; none if it does not fit.
std::optional<PipelineShape> make_shape(const SiteProblem& problem,
                                        const Composition& composition,
                                        const ShapeOptions& options,
                                        int64_t microbatch,
                                        BlockLimits& known);

/// Stages of these kinds, without blocks.
std::vector<StageChoice> stages_in_order(const std::vector<size_t>& kinds,
                                         const ShapeOptions& options);
/// The best cut of these stages, and others that suit fewer microbatches: num_cuts as in
/// split_variants().
std::vector<PipelineShape> make_shapes(const SiteProblem& problem,
                                       const std::vector<StageChoice>& stages,
                                       const ShapeOptions& options,
                                       int64_t microbatch,
                                       size_t num_cuts,
                                       BlockLimits& known);

/// Shapes of one composition for small and large microbatches: small ones leave room for more
/// blocks and make shorter bubbles, large ones start fewer operators. Remembers what was asked.
class ShapeBook {
 public:
  /// problem outlives the book.
  ShapeBook(const SiteProblem& problem, ShapeOptions options);
  /// Empty if it does not fit. The reference lives as long as the book.
  const std::vector<PipelineShape>& shapes(const Composition& composition);
  const SiteProblem& problem() const { return *problem_; }
  const ShapeOptions& options() const { return options_; }

 private:
  const SiteProblem* problem_;
  ShapeOptions options_;
  BlockLimits limits_;
  std::map<Composition, std::vector<PipelineShape>> known_;
};

/// The shape that is fastest for a share.
const PipelineShape& fastest_for(const std::vector<PipelineShape>& shapes, int64_t sequences);

}  // namespace pelago::plan
