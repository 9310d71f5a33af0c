// Means that one bad delta among several cannot pull far, value by value: for runs whose partners
// one does not want to trust between the moment a delta goes wrong and the moment it is found out.
// They cost some accuracy where sites differ honestly, so the plain mean is the default.
#pragma once

#include <span>
#include <vector>

namespace pelago::sites {

/// From how many members on a robust mean is one; fewer take the plain one.
inline constexpr size_t kRobustMembersMin = 4;

enum class MeanKind {
  kPlain,          // weighted by tokens
  kTrimmed,        // without the largest and the smallest quarter of the values, weighted
  kMedianOfMeans,  // median of the plain means of groups of members (at least three groups)
};
/// deltas: n of [N]; weights: n; mean: [N]. A robust mean divides by the weights that it kept. Adds
/// in the order of deltas, so that the same deltas give the same bits.
void robust_mean(MeanKind kind,
                 std::span<const std::span<const float>> deltas,
                 std::span<const float> weights,
                 std::span<float> mean);

}  // namespace pelago::sites
