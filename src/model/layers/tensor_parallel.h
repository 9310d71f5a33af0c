#pragma once

#include "chips/collective.h"
#include "chips/tensor.h"

namespace pelago::model {

/// Every rank's slice of the tokens, one after another. slice: [N/R,D]. Returns [N,D]; backward
/// sums the gradients of all ranks and gives each its slice. Without a group, or alone in it:
/// slice.
Tensor gather_tokens(const Tensor& slice, chips::Collective* group);

/// The sum of all ranks' parts, each rank's slice of it. part: [N,D], N a multiple of R. Returns
/// [N/R,D]; backward gathers. Without a group, or alone in it: part.
Tensor scatter_sum(const Tensor& part, chips::Collective* group);

}  // namespace pelago::model
