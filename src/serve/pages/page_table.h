// The pages of one sequence, first to last. Sequences that have begun alike share pages; whoever
// writes to a shared one gets a copy first.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "serve/pages/page_pool.h"

namespace pelago::serve {

/// A page whose content must be copied before the next forward pass.
struct PageCopy {
  int32_t from = 0, to = 0;
};

/// On loan from a pool; gives everything back when it goes. Moves; copies only by share().
class PageTable {
 public:
  explicit PageTable(PagePool& pool) : pool_(&pool) {}
  PageTable(PageTable&& other) noexcept;
  PageTable& operator=(PageTable&& other) noexcept;
  ~PageTable() { clear(); }

  std::span<const int32_t> pages() const { return pages_; }
  /// A table of the same pages.
  PageTable share() const;
  void clear();

  /// Of an empty table: takes remembered pages that these tokens begin with, whole pages only.
  /// Returns how many tokens they hold, at most num_tokens_max.
  int64_t take_prefix(std::span<const int32_t> tokens, int64_t num_tokens_max);
  /// Pages that grow() would take.
  int64_t num_missing(int64_t num_tokens) const;
  /// Makes room for num_tokens tokens, of which those from first_written on are about to be
  /// written: shared pages among these are replaced, and what they held is put into copies. Returns
  /// false if there are not pages enough; what was taken until then stays.
  bool grow(int64_t first_written, int64_t num_tokens, std::vector<PageCopy>& copies);
  /// The first num_computed of these tokens have been computed: remembers their full pages.
  void remember(std::span<const int32_t> tokens, int64_t num_computed);

 private:
  PagePool* pool_;  // outlives every table
  std::vector<int32_t> pages_;
  size_t num_remembered_ = 0;  // pages at the front that need no remember() any more
};

}  // namespace pelago::serve
