#include "serve/pages/page_table.h"

#include <algorithm>
#include <utility>

namespace pelago::serve {

PageTable::PageTable(PageTable&& other) noexcept
    : pool_(other.pool_),
      pages_(std::exchange(other.pages_, {})),
      num_remembered_(std::exchange(other.num_remembered_, 0)) {}

PageTable& PageTable::operator=(PageTable&& other) noexcept {
  if (this != &other) {
    clear();
    pool_ = other.pool_;
    pages_ = std::exchange(other.pages_, {});
    num_remembered_ = std::exchange(other.num_remembered_, 0);
  }
  return *this;
}

PageTable PageTable::share() const {
  PageTable table(*pool_);
  for (const int32_t page_idx : pages_) pool_->hold(page_idx);
  table.pages_ = pages_;
  table.num_remembered_ = num_remembered_;
  return table;
}

void PageTable::clear() {
  // Last to first, so that a page is forgotten before the one it follows.
  for (size_t idx = pages_.size(); idx-- > 0;) pool_->give_back(pages_[idx]);
  pages_.clear();
  num_remembered_ = 0;
}

int64_t PageTable::take_prefix(std::span<const int32_t> tokens, int64_t num_tokens_max) {
  PELAGO_ASSERT(pages_.empty(), "a prefix comes first");
  const auto page_tokens = static_cast<size_t>(pool_->page_tokens());
  const size_t num_usable = std::min(tokens.size(), static_cast<size_t>(num_tokens_max));
  for (size_t begin = 0; begin + page_tokens <= num_usable; begin += page_tokens) {
    const int32_t page_idx =
        pool_->find(pages_.empty() ? -1 : pages_.back(), tokens.subspan(begin, page_tokens));
    if (page_idx < 0) break;
    pages_.push_back(page_idx);
  }
  num_remembered_ = pages_.size();
  return static_cast<int64_t>(pages_.size() * page_tokens);
}

int64_t PageTable::num_missing(int64_t num_tokens) const {
  const int64_t page_tokens = pool_->page_tokens();
  const int64_t num_wanted = (num_tokens + page_tokens - 1) / page_tokens;
  return std::max<int64_t>(0, num_wanted - static_cast<int64_t>(pages_.size()));
}

bool PageTable::grow(int64_t first_written, int64_t num_tokens, std::vector<PageCopy>& copies) {
  const auto first_page = static_cast<size_t>(first_written / pool_->page_tokens());
  for (size_t idx = first_page; idx < pages_.size(); ++idx) {
    if (static_cast<int64_t>(idx) * pool_->page_tokens() >= num_tokens) break;
    if (!pool_->is_frozen(pages_[idx])) continue;
    const Result<int32_t> page_idx = pool_->take();
    if (!page_idx) return false;
    copies.push_back({.from = pages_[idx], .to = *page_idx});
    pool_->give_back(pages_[idx]);
    pages_[idx] = *page_idx;
    num_remembered_ = std::min(num_remembered_, idx);
  }
  for (int64_t num_left = num_missing(num_tokens); num_left > 0; --num_left) {
    const Result<int32_t> page_idx = pool_->take();
    if (!page_idx) return false;
    pages_.push_back(*page_idx);
  }
  return true;
}

void PageTable::remember(std::span<const int32_t> tokens, int64_t num_computed) {
  const auto page_tokens = static_cast<size_t>(pool_->page_tokens());
  const size_t num_full = static_cast<size_t>(num_computed) / page_tokens;
  for (; num_remembered_ < num_full; ++num_remembered_) {
    const size_t idx = num_remembered_;
    pages_[idx] = pool_->remember(pages_[idx],
                                  idx == 0 ? -1 : pages_[idx - 1],
                                  tokens.subspan(idx * page_tokens, page_tokens));
  }
}

}  // namespace pelago::serve
