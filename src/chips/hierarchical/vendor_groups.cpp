#include "chips/hierarchical/vendor_groups.h"

#include <map>
#include <numeric>

namespace pelago::chips {

VendorGroups::VendorGroups(const std::vector<int>& group_of_rank) {
  std::map<int, int> idx_of;  // by the number that was given
  for (size_t rank = 0; rank < group_of_rank.size(); ++rank) {
    const auto [entry, is_new] =
        idx_of.try_emplace(group_of_rank[rank], static_cast<int>(groups_.size()));
    if (is_new) groups_.emplace_back();
    std::vector<int>& group = groups_[static_cast<size_t>(entry->second)];
    group_idx_.push_back(entry->second);
    place_.push_back(static_cast<int>(group.size()));
    group.push_back(static_cast<int>(rank));
  }
  for (const std::vector<int>& group : groups_) {
    num_units_ = std::lcm(num_units_, static_cast<int64_t>(group.size()));
  }
  for (int64_t unit = 0; unit < num_units_; ++unit) {
    std::vector<int> ranks;
    for (const std::vector<int>& group : groups_) {
      const int64_t units_each = num_units_ / static_cast<int64_t>(group.size());
      ranks.push_back(group[static_cast<size_t>(unit / units_each)]);
    }
    if (!borders_.empty() && borders_.back().ranks == ranks) {
      ++borders_.back().num_units;
    } else {
      borders_.push_back({.ranks = std::move(ranks), .first_unit = unit, .num_units = 1});
    }
  }
}

std::vector<int> VendorGroups::receivers(int group_idx) const {
  const auto group_size = static_cast<int>(groups_[static_cast<size_t>(group_idx)].size());
  std::vector<int> places;
  int num_foreign = 0;
  for (int rank = 0; rank < num_ranks(); ++rank) {
    const bool is_member = this->group_idx(rank) == group_idx;
    places.push_back(is_member ? place(rank) : num_foreign++ % group_size);
  }
  return places;
}

}  // namespace pelago::chips
