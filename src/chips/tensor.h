// The one name for a tensor outside the rooms that need all of torch/torch.h (12 s a file; this
// costs 2 s).
#pragma once

#include <ATen/core/Tensor.h>

namespace pelago {
using Tensor = at::Tensor;
}  // namespace pelago
