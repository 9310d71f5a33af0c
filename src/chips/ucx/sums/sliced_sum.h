// Sums over the ranks of a group: see sliced_sum.cpp for how.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "chips/ucx/group.h"

namespace pelago::chips {

/// Who receives a sum.
enum class SumPlace {
  kEverywhere,  // every rank all of it
  kOwnSlice,    // every rank its own slice (Collective::slice_of); the rest stays as it was
};

/// Host memory of num_values values: f32, f64, bf16 or fp16.
struct HostValues {
  void* data = nullptr;
  c10::ScalarType dtype = c10::ScalarType::Float;
  int64_t num_values = 0;
};

/// Replaces values by their sum over the ranks of group, added in rank order. scratch: grows to
/// what is needed, for callers to keep. Throws c10::Error for another dtype.
void sum_over_ranks(RankGroup& group,
                    std::vector<std::byte>& scratch,
                    const HostValues& values,
                    SumPlace place);

}  // namespace pelago::chips
