// From a layout that looks good by the closed form to one whose rate is exact.
#pragma once

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

/// Plays the layout through with the best shares; its rate is then exact. Kinds of the result are
/// those of the site. book: of the division and the layout's options.
SiteLayout play_through(const SiteProblem& site,
                        const Division& division,
                        ShapeBook& book,
                        const Estimate& estimate);

}  // namespace pelago::plan
