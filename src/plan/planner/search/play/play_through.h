// From a layout that looks good by the closed form to one whose rate is exact.
#pragma once

#include <span>
#include <vector>

#include "plan/planner/search/few/division.h"
#include "plan/planner/search/layout.h"

namespace pelago::plan {

struct Estimate {
  Layout layout;
  size_t division_idx = 0;
  std::vector<double> shares;  // of each part's pipelines
  double sequences_a_second = 0;
  bool operator<(const Estimate& other) const {
    return sequences_a_second > other.sequences_a_second;
  }
};

/// Shares of a small site as its step has them best, played through: reductions hide behind the
/// last backward pass, which is longer for larger microbatches, and what that is worth only the
/// whole site can tell. Changes shares, and the microbatches that the layout's paces choose for
/// them.
void settle_shares(const SiteProblem& problem, SiteLayout& layout, std::span<int64_t> shares);

/// Plays the layout through with the best shares; its rate is then exact. Kinds of the result are
/// those of the site. book: of the division and the layout's options.
SiteLayout play_through(const SiteProblem& site,
                        const Division& division,
                        ShapeBook& book,
                        const Estimate& estimate);

}  // namespace pelago::plan
