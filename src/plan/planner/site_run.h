// A site's layout and shares as something that can be played through in virtual time, and what of
// a plan follows from that.
#pragma once

#include <span>

#include "plan/pipeline_time.h"
#include "plan/planner/search/layout.h"

namespace pelago::plan {

/// shares: sequences of each pipeline.
SiteRun site_run(const SiteProblem& problem,
                 const SiteLayout& layout,
                 std::span<const int64_t> shares);

/// Sequences at once in pipeline pipeline_idx for its share.
int64_t microbatch_for(const SiteLayout& layout, size_t pipeline_idx, int64_t share);

/// ZeRO-1 cuts the optimizer's state over as many ranks as there are pipelines.
SharedTraits shared_traits(const SiteLayout& layout);

/// Fills pipelines, step time and, device by device, times and memory of `site`, whose devices have
/// their names already. It has no bound_by yet.
SiteTime fill_site(const SiteProblem& problem,
                   const SiteLayout& layout,
                   std::span<const int64_t> shares,
                   int64_t sequence_length,
                   SitePlan& site);

}  // namespace pelago::plan
