// How the devices of a few kinds are joined to tensor-parallel sets. With few devices the sets of
// one kind may be of unlike widths: a pair beside two single ones. Each width then counts as a kind
// of its own, so that the search for layouts need not know.
#pragma once

#include <vector>

#include "plan/planner/problem.h"

namespace pelago::plan {

struct Division {
  SiteProblem problem;          // its kinds are those of the site, parted by width
  std::vector<int64_t> widths;  // by kind of `problem`
  std::vector<size_t> kind_of;  // by kind of `problem`: the site's
};

/// The site as it is, with one width for each kind.
Division uniform_division(const SiteProblem& problem, const std::vector<int64_t>& widths);

/// Every way to join devices of one kind and node to sets of 1, 2, 4 or 8; the first has single
/// devices only. At most so many ways; beyond that those with one width a kind come first.
std::vector<Division> all_divisions(const SiteProblem& problem, size_t most);

}  // namespace pelago::plan
