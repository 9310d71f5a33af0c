// Paged attention by AMX: as paged_attention.h says, with tiles of 16 rows. Decoding takes this way
// too where there is one, so that a row has the same bits whether it is read or written, alone or
// among others: blocks of keys begin at fixed positions, and keys that a row does not see have
// weights of 0, which change no sum.
#pragma once

#include <cstddef>

#include "chips/packed/paged_attention.h"

namespace pelago::chips::packed {

inline constexpr size_t kTiledAttentionRows = 64;  // of a call, at most

/// Whether attend_rows_by_tiles() takes pages of this layout: a processor with AMX, bf16, head_dim
/// and page_tokens multiples of 32.
bool attends_by_tiles(const PageLayout& layout);

/// attend_rows() for such pages.
void attend_rows_by_tiles(const AttentionJob& job,
                          size_t begin,
                          size_t end,
                          AttentionScratch& scratch);

}  // namespace pelago::chips::packed
