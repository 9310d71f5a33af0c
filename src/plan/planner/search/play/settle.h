// The last step of a search among few devices: what only the whole site's step can tell, looked at
// one change at a time. Reductions hide behind the last backward pass, which is longer for larger
// microbatches; and they are quick where those who share a block are in one node.
#pragma once

#include <span>

#include "plan/planner/search/layout.h"

namespace pelago::plan {

/// Shares of at most so many sequences are played, not estimated, where devices are few.
constexpr int64_t kSequencesOfFew = 64;

/// Changes shares, and the microbatches that the layout's paces choose for them, where the site's
/// step is shorter by it. Large sites stay as they are.
void settle_shares(const SiteProblem& problem, SiteLayout& layout, std::span<int64_t> shares);

/// The same, and which devices of a kind are which stages, of a layout that nobody works by yet.
void settle_layout(const SiteProblem& problem, SiteLayout& layout, std::span<int64_t> shares);

}  // namespace pelago::plan
