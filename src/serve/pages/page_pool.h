// The bookkeeping of the paged key/value cache (arXiv:2309.06180): which page is whose. A page
// holds the keys and values of page_tokens tokens; the memory itself belongs to the runner.
//
// Several sequences may hold one page. A full page is also remembered by what it was computed from:
// its tokens and the page before it, found by a hash chained from page to page. So a prompt that
// begins as an earlier one did takes the earlier one's pages, as long as nobody needed them for
// something else: pages that nobody holds are forgotten in the order in which they were last used.
// Whoever holds a page holds those before it and gives them back last to first; so a remembered
// page never outlives the one it follows, and a page index is proof enough of everything before it.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/error.h"

namespace pelago::serve {

/// Belongs to one thread.
class PagePool {
 public:
  PagePool(int32_t num_pages, int page_tokens);

  /// A page of one holder. kNoSpace if every page has one.
  Result<int32_t> take();
  void hold(int32_t page_idx);
  void give_back(int32_t page_idx);
  /// Nobody may write to it: several hold it, or others may find it.
  bool is_frozen(int32_t page_idx) const;

  /// The page remembered for these tokens (page_tokens of them) after parent (-1: they are the
  /// first), held for the caller; -1 if there is none.
  int32_t find(int32_t parent, std::span<const int32_t> tokens);
  /// Remembers a full page of the caller. Returns the page that now stands for these tokens: where
  /// another one did already, the caller's is given back and that one is held in its place.
  int32_t remember(int32_t page_idx, int32_t parent, std::span<const int32_t> tokens);

  int page_tokens() const { return page_tokens_; }
  int32_t num_pages() const { return static_cast<int32_t>(pages_.size()); }
  /// Pages that take() could give, one after another.
  int32_t num_available() const { return static_cast<int32_t>(free_.size()) + num_idle_; }
  int32_t num_held() const { return num_pages() - num_available(); }
  /// Remembered pages that nobody holds.
  int32_t num_idle() const { return num_idle_; }

 private:
  struct Page {
    int32_t num_holders = 0;
    bool is_remembered = false;
    uint64_t key = 0;
    int32_t parent = -1;
    int32_t newer = -1, older = -1;  // in the order of last use, while nobody holds it
  };
  Page& at(int32_t page_idx) { return pages_[static_cast<size_t>(page_idx)]; }
  const Page& at(int32_t page_idx) const { return pages_[static_cast<size_t>(page_idx)]; }
  std::span<int32_t> tokens_of(int32_t page_idx);
  uint64_t key_of(int32_t parent, std::span<const int32_t> tokens) const;
  int32_t lookup(uint64_t key, int32_t parent, std::span<const int32_t> tokens);
  void link_newest(int32_t page_idx);
  void unlink(int32_t page_idx);

  const int page_tokens_;
  std::vector<Page> pages_;
  std::vector<int32_t> tokens_;  // [P,S], of remembered pages
  std::vector<int32_t> free_;
  std::unordered_map<uint64_t, int32_t> by_key_;
  int32_t newest_ = -1, oldest_ = -1, num_idle_ = 0;
};

}  // namespace pelago::serve
