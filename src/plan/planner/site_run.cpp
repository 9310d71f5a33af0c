#include "plan/planner/site_run.h"

#include <algorithm>
#include <numeric>

#include "plan/cost/device/links.h"
#include "plan/planner/reduction.h"

namespace pelago::plan {

int64_t microbatch_for(const SiteLayout& layout, size_t pipeline_idx, int64_t share) {
  return layout.pipelines[pipeline_idx].shape.pace.best_microbatch(share);
}

SharedTraits shared_traits(const SiteLayout& layout) {
  SharedTraits traits;
  if (layout.slices_optimizer) {
    traits.optimizer_share = 1 / static_cast<double>(layout.pipelines.size());
  }
  for (const SiteLayout::Pipeline& pipeline : layout.pipelines) {
    for (const std::vector<int>& ranks : pipeline.ranks) {
      traits.is_scattered = traits.is_scattered || ranks.size() > 1;
    }
  }
  return traits;
}

SiteRun site_run(const SiteProblem& problem,
                 const SiteLayout& layout,
                 std::span<const int64_t> shares) {
  SiteRun run;
  int64_t num_ranks = 0;
  TransportCosts slowest;
  double copy_s = 0;
  for (size_t i = 0; i < layout.pipelines.size(); ++i) {
    const PipelineShape& shape = layout.pipelines[i].shape;
    run.pipelines.push_back(
        {shape.costs, cut_microbatches(shares[i], microbatch_for(layout, i, shares[i]))});
    // Tokens or targets to the device before its first microbatch, losses or largest values from it
    // behind its last: a device with the whole model has both.
    const double num_copies = shape.stages.size() == 1 ? 4 : 2;
    for (const StageChoice& stage : shape.stages) {
      num_ranks += stage.shape.width;
      const Kind& kind = problem.kinds[stage.kind_idx];
      slowest = slower_of(slowest, kind.transport);
      copy_s = std::max(copy_s, num_copies * kind.profile.host_copy_s);
    }
  }
  if (num_ranks > 1) run.agree_s = 4 * slowest.message_s;
  run.agree_s += copy_s;
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
  const SharedTraits traits = shared_traits(layout);
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
                                 .recompute = shape.recompute,
                                 .in_flight = from.shape.stages[s].in_flight});
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
                                                  traits);
      }
    }
    site.pipelines.push_back(std::move(pipeline));
  }
  return time;
}

}  // namespace pelago::plan
