// Products of levels by AMX, whose tiles multiply 16 rows by 16 outputs by 64 inputs at a time:
// eight times as much as VPDPBUSD does.
#pragma once

#include <cstddef>

#include "chips/packed/panels.h"

namespace pelago::chips::packed {

/// Products of 8 and 4 bits, with the same bits as those of AVX-512; null where the processor or
/// the system has none. x is [num_words / kAmxWords][num_rows][kAmxWords], num_rows 1..kAmxRows,
/// num_words a multiple of kAmxWords and group_words of 8.
MultiplyPanels amx_multiply_levels(Format format);

/// From so many rows on AMX is the faster one of the two: up to 6 are one tile of AVX-512, which
/// reads weights up to a quarter faster.
inline constexpr size_t kAmxLevelRowsMin = 7;

/// Nibbles of a panel, [num_words] of 4 bits, to [num_words] of 8: what the product of 8 bits takes
/// in their place. num_words even. Only where amx_multiply_levels is not null.
void widen_nibbles(const std::byte* from, size_t num_words, std::byte* to);

}  // namespace pelago::chips::packed
