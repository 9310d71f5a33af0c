// Products of many rows, more than 32, by AMX. A core's multipliers outrun its second cache: what
// they take at a time must lie there, and be used often while it does. So the words of all rows go
// in blocks that fill a part of that cache, and each block meets the weights of a group of panels
// before the next one comes; the sums of the group wait in the cache meanwhile. The next words and
// weights are fetched early. Sums go on where they ended: all this changes no bit of them.
#pragma once

#include <cstddef>

#include "chips/packed/core_team.h"
#include "chips/packed/packed_matrix.h"
#include "chips/packed/rows.h"

namespace pelago::chips::packed {

/// multiply() of rows.h for x.is_in_blocks().
void multiply_blocks(CoreTeam::Member& member,
                     const PackedRows& x,
                     const PackedMatrix& weights,
                     float* c,
                     size_t c_stride,
                     bool adds);
/// multiply_swiglu() of rows.h where both x and to are in blocks: each 16 outputs are rounded and
/// put where they belong as soon as their sums are whole.
void multiply_swiglu_blocks(CoreTeam::Member& member,
                            const PackedRows& x,
                            const PackedMatrix& gate_up,
                            PackedRows& to);

}  // namespace pelago::chips::packed
