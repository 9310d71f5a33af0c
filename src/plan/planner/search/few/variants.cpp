#include "plan/planner/search/few/variants.h"

#include <algorithm>
#include <array>
#include <limits>
#include <set>

#include "plan/planner/search/split.h"

namespace pelago::plan {

namespace {

constexpr size_t kOrdersMax = 120;  // of the stages of one pipeline
constexpr size_t kCutsTried = 20;   // of one order: all of them if there are no more

/// What a share takes in microbatches of one size, without the optimizer.
double played_s(const PipelineShape& shape, int64_t sequences, int64_t microbatch) {
  return simulate_pipeline({shape.costs, cut_microbatches(sequences, microbatch)}).end_s;
}

Pace::Played best_played(const PipelineShape& shape, int64_t sequences) {
  // Sums of times are rounded: a smaller microbatch must be better than by the last bits.
  constexpr double kBetter = 1 - 1e-9;
  Pace::Played best{.seconds = std::numeric_limits<double>::infinity()};
  for (const int64_t size : even_cuts(sequences, shape.pace)) {
    const double seconds = played_s(shape, sequences, size);
    if (seconds < kBetter * best.seconds) best = {seconds, size};
  }
  return best;
}

/// The largest microbatch for which some cut of the stages fits; 0 if none does. What fits with
/// some microbatch fits with every smaller one.
int64_t largest_that_fits(const SiteProblem& problem,
                          const std::vector<StageChoice>& stages,
                          const ShapeOptions& options,
                          BlockLimits& known) {
  const auto fits_with = [&](int64_t microbatch) {
    return !make_shapes(problem, stages, options, microbatch, 1, known).empty();
  };
  const int64_t most = problem.train.microbatch_sequences;
  if (fits_with(most)) return most;
  if (problem.train.exact_microbatch) return 0;
  int64_t enough = 0;
  for (int64_t beyond = most; beyond - enough > 1;) {
    const int64_t middle = enough + (beyond - enough) / 2;
    (fits_with(middle) ? enough : beyond) = middle;
  }
  return enough;
}

}  // namespace

std::vector<PipelineShape> shape_variants(const SiteProblem& problem,
                                          const Composition& composition,
                                          const ShapeOptions& options,
                                          BlockLimits& known) {
  std::vector<size_t> order;  // kinds, by stage
  for (size_t kind = 0; kind < composition.size(); ++kind) {
    order.insert(order.end(), static_cast<size_t>(composition[kind]), kind);
  }
  std::vector<PipelineShape> variants;
  using Cut = std::vector<std::array<int64_t, 3>>;
  std::set<std::pair<int64_t, Cut>> seen;
  size_t num_orders = 0;
  do {
    const std::vector<StageChoice> stages = stages_in_order(order, options);
    for (int64_t microbatch = largest_that_fits(problem, stages, options, known); microbatch >= 1;
         microbatch = problem.train.exact_microbatch ? 0
                      : microbatch > 4               ? microbatch / 2
                                                     : microbatch - 1) {
      for (PipelineShape& shape :
           make_shapes(problem, stages, options, microbatch, kCutsTried, known)) {
        Cut cut;
        for (const StageChoice& stage : shape.stages) {
          cut.push_back({static_cast<int64_t>(stage.kind_idx),
                         stage.shape.num_blocks,
                         stage.shape.recompute ? 1 : 0});
        }
        // The same cut was there with larger microbatches, which may be taken smaller.
        if (seen.insert({0, cut}).second) variants.push_back(std::move(shape));
      }
    }
  } while (std::next_permutation(order.begin(), order.end()) && ++num_orders < kOrdersMax);
  return variants;
}

std::vector<int64_t> even_cuts(int64_t sequences, const Pace& pace) {
  const int64_t largest = std::min(sequences, pace.microbatch_max);
  if (pace.is_exact) return {largest};
  std::vector<int64_t> sizes;
  for (int64_t size = largest; size >= 1;) {
    const int64_t count = (sequences + size - 1) / size;
    sizes.push_back((sequences + count - 1) / count);
    size = sizes.back() - 1;
  }
  return sizes;
}

void play_shares(PipelineShape& shape, int64_t sequences_max) {
  shape.pace.played.clear();
  // Of a single stage the estimate is exact.
  if (shape.stages.size() == 1) return;
  double longest_s = 0;
  for (int64_t sequences = 1; sequences <= sequences_max; ++sequences) {
    Pace::Played played = best_played(shape, sequences);
    longest_s = played.seconds = std::max(longest_s, played.seconds);
    shape.pace.played.push_back(played);
  }
}

const PipelineShape& fastest_played(const std::vector<PipelineShape>& shapes,
                                    int64_t sequences,
                                    double near) {
  double least_s = std::numeric_limits<double>::infinity();
  for (const PipelineShape& shape : shapes) {
    least_s = std::min(least_s, shape.pace.time_s(sequences));
  }
  const PipelineShape* fastest = &shapes.front();
  double fastest_s = std::numeric_limits<double>::infinity();
  for (const PipelineShape& shape : shapes) {
    if (shape.pace.time_s(sequences) > near * least_s) continue;
    const double seconds = best_played(shape, sequences).seconds + shape.pace.step_s;
    if (seconds >= fastest_s) continue;
    fastest_s = seconds;
    fastest = &shape;
  }
  return *fastest;
}

}  // namespace pelago::plan
