// The sites of a plan share its batch anew, since one of them has become slower as a whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "plan/job.h"
#include "plan/plan.h"

namespace pelago::plan {

/// The same stages with another share of the batch for each site, and of its sequences for each
/// pipeline. Takes milliseconds. sequences: by site; they add up to the batch. pace_factors: by rank
/// of the site at site_idx, how many times longer a device takes than its profile says; empty: 1
/// for all. Throws Failure if a site has more pipelines than sequences.
Plan share_batch(const Plan& plan,
                 const JobConfig& job,
                 std::span<const int64_t> sequences,
                 size_t site_idx,
                 std::span<const double> pace_factors);

}  // namespace pelago::plan
