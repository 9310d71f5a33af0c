// What adding up gradients costs. Inside a vendor group the chips' own links sum and spread,
// between groups each chip passes its part of the sum through its host.
#pragma once

#include "plan/pipeline_time.h"
#include "plan/planner/search/layout.h"

namespace pelago::plan {

/// The buckets of the layout, as the trainer cuts them, and the weights that a sliced optimizer
/// sends around after its update.
void add_reductions(const SiteProblem& problem, const SiteLayout& layout, SiteRun& run);

/// Roughly what reductions add to a step, for a search: those of the blocks that go backward last
/// wait for nobody, the others hide behind the last backward pass as far as it is long enough.
double estimate_reduction_s(ShapeBook& book, const Layout& layout);

}  // namespace pelago::plan
