// What a site that wants in has other than the run, or than another site of it.
#pragma once

#include <string>

#include "sites/protocol/messages.h"

namespace pelago::sites {

/// Everything that differs, so that one look mends it; empty: nothing. "plan.json
/// (exchange.inner_steps 30, not 24), tokenizer (9f.., not 3c..)". What `theirs` leaves empty is
/// not known, and differs from nothing.
std::string differences(const Hello& mine, const Hello& theirs);

}  // namespace pelago::sites
