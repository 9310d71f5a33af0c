#include "plan/planner/aim/allowance.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace pelago::plan {

Allowance::Allowance(const std::vector<Group>& groups,
                     const AimConfig& aim,
                     const std::map<std::string, int64_t>& keep_free,
                     std::vector<double> device_tokens_s)
    : groups_(groups),
      aim_(aim),
      device_tokens_s_(std::move(device_tokens_s)),
      order_(groups.size()),
      most_(groups.size(), 0) {
  std::iota(order_.begin(), order_.end(), size_t{0});
  const bool is_by_price = aim.objective == "tokens/price";
  const bool is_by_watt = aim.objective == "tokens/joule" || (!is_by_price && aim.max_watts > 0);
  const auto gives = [&](size_t i) {
    const double takes = is_by_price ? groups_[i].price_hour : is_by_watt ? groups_[i].power_w : 1;
    return device_tokens_s_[i] / takes;
  };
  std::ranges::stable_sort(order_, [&](size_t a, size_t b) { return gives(a) > gives(b); });
  // Of a chip that must stay free in part those that give least stay.
  std::map<std::string, int64_t> staying = keep_free;
  for (auto i = order_.rbegin(); i != order_.rend(); ++i) {
    int64_t& left = staying[groups_[*i].chip];
    const int64_t stays = std::min(left, groups_[*i].count());
    most_[*i] = groups_[*i].count() - stays;
    left -= stays;
  }
}

std::vector<Counts> Allowance::starts() const {
  std::vector<Counts> all;
  Counts together(groups_.size(), 0);
  for (const size_t i : order_) {
    Counts alone(groups_.size(), 0);
    alone[i] = within_watts(groups_[i], most_[i], 0);
    together[i] = within_watts(groups_[i], most_[i], watts_of(together));
    all.push_back(filled(alone, i));
    all.push_back(std::move(alone));
    all.push_back(together);
  }
  return all;
}

Counts Allowance::filled(Counts counts, size_t group_idx) const {
  if (aim_.max_watts == 0) return counts;
  for (const size_t i : order_) {
    if (i == group_idx) continue;
    const double others_w = watts_of(counts) - static_cast<double>(counts[i]) * groups_[i].power_w;
    counts[i] = std::max(counts[i], within_watts(groups_[i], most_[i], others_w));
  }
  return counts;
}

double Allowance::bound_tokens_s(const Counts& counts) const {
  return std::inner_product(counts.begin(), counts.end(), device_tokens_s_.begin(), 0.0);
}

double Allowance::watts_of(const Counts& counts) const {
  double watts = 0;
  for (size_t i = 0; i < groups_.size(); ++i) {
    watts += static_cast<double>(counts[i]) * groups_[i].power_w;
  }
  return watts;
}

int64_t Allowance::within_watts(const Group& group, int64_t count, double watts) const {
  if (aim_.max_watts == 0) return count;
  const double left_w = std::max(0.0, aim_.max_watts - watts);
  const auto powered = static_cast<int64_t>(left_w / group.power_w);
  if (powered >= count) return count;
  return powered > 2 * group.node_size ? powered / group.node_size * group.node_size : powered;
}

}  // namespace pelago::plan
