// Which ranks share a library, and who across the groups holds the same part of a vector. Pure.
//
// A chunk of a vector is cut into num_units equal units, the least common multiple of the groups'
// sizes. In a group of s ranks, rank i holds units [i U/s, (i+1) U/s) after a reduce-scatter. A
// border is a run of units that one rank of each group holds: these ranks, in the order of their
// groups, add the groups' sums. Groups of one size have a border a rank; of 2 and 3 ranks, four:
//     group of 2   | 0     0     0  |  1     1     1  |
//     group of 3   | 0     0  |  1     1  |  2     2  |
//     borders      |    A     |  B  |  C  |    D      |
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pelago::chips {

struct Border {
  std::vector<int> ranks;  // one of each group, in group order
  int64_t first_unit = 0, num_units = 0;
};

class VendorGroups {
 public:
  /// groups: by rank, any numbers. Groups are ordered by their lowest rank, ranks within a group by
  /// rank.
  explicit VendorGroups(const std::vector<int>& group_of_rank);

  int num_ranks() const { return static_cast<int>(group_idx_.size()); }
  const std::vector<std::vector<int>>& groups() const { return groups_; }
  int group_idx(int rank) const { return group_idx_[static_cast<size_t>(rank)]; }
  const std::vector<int>& group_of(int rank) const {
    return groups_[static_cast<size_t>(group_idx(rank))];
  }
  /// The place of a rank in its group.
  int place(int rank) const { return place_[static_cast<size_t>(rank)]; }

  int64_t num_units() const { return num_units_; }
  const std::vector<Border>& borders() const { return borders_; }  // in the order of their units

  /// By rank of the whole: the place in group group_idx that brings this rank's data into it. For a
  /// rank of the group its own; the others' are dealt out in turn.
  std::vector<int> receivers(int group_idx) const;

 private:
  std::vector<std::vector<int>> groups_;  // ranks
  std::vector<int> group_idx_, place_;    // by rank
  int64_t num_units_ = 1;
  std::vector<Border> borders_;
};

}  // namespace pelago::chips
