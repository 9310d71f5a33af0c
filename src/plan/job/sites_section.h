// The section [sites] of job.toml.
#pragma once

#include "plan/job.h"
#include "plan/job/section.h"

namespace pelago::plan {

/// What its method starts from, then its other keys. Throws Failure (exit 2) naming key and value.
void read_sites(const Section& section, SitesConfig& sites);

}  // namespace pelago::plan
