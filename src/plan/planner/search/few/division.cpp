#include "plan/planner/search/few/division.h"

#include <algorithm>

namespace pelago::plan {

namespace {

constexpr int64_t kWidths[] = {8, 4, 2, 1};

/// Sets of one kind by width, largest first; none if nodes do not allow them.
using Sets = std::vector<std::pair<int64_t, std::vector<std::vector<int>>>>;

/// Takes `count` sets of `width` from the nodes' ranks, fuller nodes first. False if there are not
/// so many.
bool take_sets(std::vector<std::vector<int>>& nodes,
               int64_t width,
               int64_t count,
               std::vector<std::vector<int>>& sets) {
  for (std::vector<int>& node : nodes) {
    while (count > 0 && static_cast<int64_t>(node.size()) >= width) {
      const auto end = node.begin() + static_cast<std::ptrdiff_t>(width);
      sets.emplace_back(node.begin(), end);
      node.erase(node.begin(), end);
      --count;
    }
  }
  return count == 0;
}

/// All ways for one kind, the one with single devices first.
std::vector<Sets> ways_of(const SiteProblem& problem, const Kind& kind) {
  std::vector<Sets> ways;
  for (int64_t eights = 0; 8 * eights <= kind.count; ++eights) {
    for (int64_t fours = 0; 8 * eights + 4 * fours <= kind.count; ++fours) {
      for (int64_t twos = 0; 8 * eights + 4 * fours + 2 * twos <= kind.count; ++twos) {
        const int64_t counts[] = {
            eights, fours, twos, kind.count - 8 * eights - 4 * fours - 2 * twos};
        std::vector<std::vector<int>> nodes = kind.nodes;
        Sets sets;
        bool is_possible = true;
        for (size_t i = 0; i < 4 && is_possible; ++i) {
          if (counts[i] == 0) continue;
          sets.emplace_back(kWidths[i], std::vector<std::vector<int>>{});
          is_possible = (kWidths[i] == 1 || can_be_cut(problem.sizes, kWidths[i])) &&
                        kind.profile.allows(kWidths[i]) &&
                        take_sets(nodes, kWidths[i], counts[i], sets.back().second);
        }
        if (is_possible) ways.push_back(std::move(sets));
      }
    }
  }
  std::stable_sort(
      ways.begin(), ways.end(), [](const Sets& a, const Sets& b) { return a.size() < b.size(); });
  return ways;
}

/// Devices of the kind that these sets are made of, as a kind of its own.
Kind part_of(const Kind& kind, const std::vector<std::vector<int>>& sets) {
  Kind part = kind;
  part.nodes.assign(kind.nodes.size(), {});
  part.node_of.clear();
  part.count = 0;
  for (const std::vector<int>& set : sets) {
    for (const int rank : set) {
      const int node = kind.node_of.at(rank);
      part.nodes[static_cast<size_t>(node)].push_back(rank);
      part.node_of[rank] = node;
      part.count += 1;
    }
  }
  return part;
}

}  // namespace

Division uniform_division(const SiteProblem& problem, const std::vector<int64_t>& widths) {
  Division division{.problem = problem, .widths = widths, .kind_of = {}};
  for (size_t kind = 0; kind < problem.kinds.size(); ++kind) division.kind_of.push_back(kind);
  return division;
}

std::vector<Division> all_divisions(const SiteProblem& problem, size_t most) {
  std::vector<Division> divisions(1);
  divisions.front().problem = problem;
  divisions.front().problem.kinds.clear();
  for (size_t kind_idx = 0; kind_idx < problem.kinds.size(); ++kind_idx) {
    const Kind& kind = problem.kinds[kind_idx];
    std::vector<Division> more;
    for (const Sets& sets : ways_of(problem, kind)) {
      for (const Division& before : divisions) {
        Division one = before;
        for (const auto& [width, of_width] : sets) {
          one.problem.kinds.push_back(part_of(kind, of_width));
          one.widths.push_back(width);
          one.kind_of.push_back(kind_idx);
        }
        more.push_back(std::move(one));
      }
    }
    divisions = std::move(more);
    if (divisions.size() > most) divisions.resize(most);
  }
  return divisions;
}

}  // namespace pelago::plan
