// What a search among few devices can afford: shapes of a pipeline in every order of its stages and
// with several trades between the slowest stage and the way of one microbatch, and paces that are
// played instead of estimated.
#pragma once

#include <vector>

#include "plan/planner/search/shape.h"

namespace pelago::plan {

/// So few that every order and every width is looked at.
constexpr int64_t kDevicesFewest = 8;

/// Shapes of one composition that fit, the same stages never twice. known: of this problem and
/// these options.
std::vector<PipelineShape> shape_variants(const SiteProblem& problem,
                                          const Composition& composition,
                                          const ShapeOptions& options,
                                          BlockLimits& known);

/// Sizes of microbatches that cut so many sequences in unlike numbers of them, each as even as it
/// goes, the largest first.
std::vector<int64_t> even_cuts(int64_t sequences, const Pace& pace);

/// Fills shape.pace.played for shares of up to so many sequences.
void play_shares(PipelineShape& shape, int64_t sequences_max);

/// The shape that is fastest for a share when played through; near: those whose estimate is so many
/// times the least one are looked at.
const PipelineShape& fastest_played(const std::vector<PipelineShape>& shapes,
                                    int64_t sequences,
                                    double near);

}  // namespace pelago::plan
