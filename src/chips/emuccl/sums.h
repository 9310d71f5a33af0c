// Sums over ranks of every dtype, in rank order, rounded once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "chips/emuccl/emuccl.h"

namespace pelago::emuccl {

/// 0 for a dtype that the library lacks.
size_t bytes_of(emucclDataType_t dtype);
/// Bytes that one value of a partial sum takes: f64 for f64, else f32. 0 if it cannot be summed.
size_t bytes_of_partial(emucclDataType_t dtype);

/// partial[i] = values[i], or partial[i] (op) values[i] after the first rank.
void add_values(emucclDataType_t dtype,
                emucclRedOp_t op,
                bool is_first_rank,
                const void* values,
                size_t count,
                void* partial);
/// to[i] = partial[i] in the dtype, rounded to the nearest, ties to even.
void round_values(emucclDataType_t dtype, const void* partial, size_t count, void* to);

}  // namespace pelago::emuccl
