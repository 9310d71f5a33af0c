#include "serve/pages/page_pool.h"

#include <algorithm>

#include "base/rng.h"

namespace pelago::serve {

PagePool::PagePool(int32_t num_pages, int page_tokens) : page_tokens_(page_tokens) {
  PELAGO_ASSERT(num_pages > 0 && page_tokens > 0, "a pool holds pages, a page holds tokens");
  pages_.resize(static_cast<size_t>(num_pages));
  tokens_.resize(pages_.size() * static_cast<size_t>(page_tokens));
  for (int32_t page_idx = num_pages - 1; page_idx >= 0; --page_idx) free_.push_back(page_idx);
}

std::span<int32_t> PagePool::tokens_of(int32_t page_idx) {
  const auto page_tokens = static_cast<size_t>(page_tokens_);
  return std::span(tokens_).subspan(static_cast<size_t>(page_idx) * page_tokens, page_tokens);
}

uint64_t PagePool::key_of(int32_t parent, std::span<const int32_t> tokens) const {
  uint64_t key = parent < 0 ? 0x9e3779b97f4a7c15ULL : at(parent).key;
  for (const int32_t token : tokens) key = Rng::mix(key ^ static_cast<uint32_t>(token));
  return key;
}

void PagePool::link_newest(int32_t page_idx) {
  Page& page = at(page_idx);
  page.newer = -1;
  page.older = newest_;
  (newest_ < 0 ? oldest_ : at(newest_).newer) = page_idx;
  newest_ = page_idx;
  ++num_idle_;
}

void PagePool::unlink(int32_t page_idx) {
  const Page& page = at(page_idx);
  (page.newer < 0 ? newest_ : at(page.newer).older) = page.older;
  (page.older < 0 ? oldest_ : at(page.older).newer) = page.newer;
  --num_idle_;
}

Result<int32_t> PagePool::take() {
  int32_t page_idx = -1;
  if (!free_.empty()) {
    page_idx = free_.back();
    free_.pop_back();
  } else if (oldest_ >= 0) {
    page_idx = oldest_;
    unlink(page_idx);
    by_key_.erase(at(page_idx).key);
  } else {
    return Error{ErrorCode::kNoSpace, fmt::format("all {} pages are in use", num_pages())};
  }
  at(page_idx) = {.num_holders = 1};
  return page_idx;
}

void PagePool::hold(int32_t page_idx) {
  Page& page = at(page_idx);
  if (page.num_holders == 0) {
    PELAGO_ASSERT(page.is_remembered, "a free page has no content to share");
    unlink(page_idx);
  }
  ++page.num_holders;
}

void PagePool::give_back(int32_t page_idx) {
  Page& page = at(page_idx);
  PELAGO_ASSERT(page.num_holders > 0, "only a held page can be given back");
  if (--page.num_holders > 0) return;
  if (page.is_remembered) {
    link_newest(page_idx);
  } else {
    free_.push_back(page_idx);
  }
}

bool PagePool::is_frozen(int32_t page_idx) const {
  return at(page_idx).num_holders > 1 || at(page_idx).is_remembered;
}

int32_t PagePool::lookup(uint64_t key, int32_t parent, std::span<const int32_t> tokens) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return -1;
  // The hash only says where to look: nobody may be given another's page by a collision.
  const int32_t page_idx = found->second;
  const bool is_same =
      at(page_idx).parent == parent && std::ranges::equal(tokens_of(page_idx), tokens);
  return is_same ? page_idx : -1;
}

int32_t PagePool::find(int32_t parent, std::span<const int32_t> tokens) {
  const int32_t page_idx = lookup(key_of(parent, tokens), parent, tokens);
  if (page_idx >= 0) hold(page_idx);
  return page_idx;
}

int32_t PagePool::remember(int32_t page_idx, int32_t parent, std::span<const int32_t> tokens) {
  PELAGO_ASSERT(tokens.size() == static_cast<size_t>(page_tokens_), "only full pages are kept");
  Page& page = at(page_idx);
  if (page.is_remembered || (parent >= 0 && !at(parent).is_remembered)) return page_idx;
  const uint64_t key = key_of(parent, tokens);
  const int32_t known = lookup(key, parent, tokens);
  if (known >= 0) {
    hold(known);
    give_back(page_idx);
    return known;
  }
  if (!by_key_.emplace(key, page_idx).second) return page_idx;  // a collision: stays unknown
  page.is_remembered = true;
  page.key = key;
  page.parent = parent;
  std::ranges::copy(tokens, tokens_of(page_idx).begin());
  return page_idx;
}

}  // namespace pelago::serve
