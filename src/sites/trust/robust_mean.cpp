#include "sites/trust/robust_mean.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace pelago::sites {

namespace {

void plain_mean(std::span<const std::span<const float>> deltas,
                std::span<const float> weights,
                std::span<float> mean) {
  std::fill(mean.begin(), mean.end(), 0.0F);
  for (size_t member = 0; member < deltas.size(); ++member) {
    for (size_t i = 0; i < mean.size(); ++i) mean[i] += weights[member] * deltas[member][i];
  }
}

void trimmed_mean(std::span<const std::span<const float>> deltas,
                  std::span<const float> weights,
                  std::span<float> mean) {
  const size_t num_members = deltas.size(), num_cut = num_members / 4;
  std::vector<size_t> order(num_members);
  std::vector<char> is_kept(num_members);
  for (size_t i = 0; i < mean.size(); ++i) {
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t one, size_t other) {
      return std::pair(deltas[one][i], one) < std::pair(deltas[other][i], other);
    });
    std::fill(is_kept.begin(), is_kept.end(), 0);
    for (size_t rank = num_cut; rank + num_cut < num_members; ++rank) is_kept[order[rank]] = 1;
    float sum = 0, weight = 0;
    for (size_t member = 0; member < num_members; ++member) {
      if (is_kept[member] == 0) continue;
      sum += weights[member] * deltas[member][i];
      weight += weights[member];
    }
    mean[i] = weight > 0 ? sum / weight : 0;
  }
}

void median_of_means(std::span<const std::span<const float>> deltas,
                     std::span<const float> weights,
                     std::span<float> mean) {
  // As many groups as leave two members in each, but at least three: one bad delta spoils one.
  const size_t num_groups = std::max<size_t>(3, deltas.size() / 2);
  std::vector<float> sums(num_groups), totals(num_groups), means;
  for (size_t i = 0; i < mean.size(); ++i) {
    std::fill(sums.begin(), sums.end(), 0.0F);
    std::fill(totals.begin(), totals.end(), 0.0F);
    for (size_t member = 0; member < deltas.size(); ++member) {
      sums[member % num_groups] += weights[member] * deltas[member][i];
      totals[member % num_groups] += weights[member];
    }
    means.clear();
    for (size_t group = 0; group < num_groups; ++group) {
      if (totals[group] > 0) means.push_back(sums[group] / totals[group]);
    }
    std::sort(means.begin(), means.end());
    const size_t middle = means.size() / 2;
    mean[i] = means.empty()           ? 0
              : means.size() % 2 == 1 ? means[middle]
                                      : 0.5F * (means[middle - 1] + means[middle]);
  }
}

}  // namespace

void robust_mean(MeanKind kind,
                 std::span<const std::span<const float>> deltas,
                 std::span<const float> weights,
                 std::span<float> mean) {
  const bool is_robust = kind != MeanKind::kPlain && deltas.size() >= kRobustMembersMin;
  if (!is_robust) return plain_mean(deltas, weights, mean);
  if (kind == MeanKind::kTrimmed) return trimmed_mean(deltas, weights, mean);
  median_of_means(deltas, weights, mean);
}

}  // namespace pelago::sites
