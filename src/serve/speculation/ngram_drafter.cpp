#include <algorithm>

#include "serve/speculation/drafter.h"

namespace pelago::serve {

namespace {

constexpr size_t kLookBackTokens = 16'384;  // scanned in some 10 us

}  // namespace

int DraftPace::num_wanted(int draft_max) {
  if (num_to_pass_ > 0) {
    --num_to_pass_;
    return 0;
  }
  return std::min(length_, draft_max);
}

void DraftPace::note(int64_t num_guessed, int64_t num_held) {
  if (num_guessed == 0) return;
  if (num_held == num_guessed) {
    length_ = std::min(2 * length_, 64);
    num_misses_ = 0;
  } else if (num_held > 0) {
    length_ = static_cast<int>(num_held) + 1;
    num_misses_ = std::max(0, num_misses_ - 1);
  } else {
    // Each miss in a row doubles the wait: text that only looks repetitive costs next to nothing.
    length_ = std::max(2, length_ / 2);
    num_misses_ = std::min(num_misses_ + 1, 7);
    num_to_pass_ = (1 << num_misses_) - 2;
  }
}

void NgramDrafter::propose(std::span<const DraftTask> tasks) {
  for (const DraftTask& task : tasks) {
    const std::vector<int32_t>& tokens = task.sequence->tokens;
    if (tokens.size() <= ngram_tokens_) continue;
    const std::span<const int32_t> ngram = std::span(tokens).last(ngram_tokens_);
    const size_t lowest = tokens.size() > kLookBackTokens ? tokens.size() - kLookBackTokens : 0;
    // From the latest place on back: what was said last is the likeliest to be said again.
    for (size_t end = tokens.size() - 1; end >= lowest + ngram_tokens_; --end) {
      if (tokens[end - 1] != ngram.back()) continue;
      if (!std::equal(ngram.begin(),
                      ngram.end(),
                      tokens.begin() + static_cast<std::ptrdiff_t>(end - ngram_tokens_))) {
        continue;
      }
      // A text that repeats itself with a short period goes on with that period.
      for (size_t idx = 0; idx < static_cast<size_t>(task.num_wanted); ++idx) {
        const size_t from = end + idx;
        task.sequence->draft.push_back(
            from < tokens.size() ? tokens[from] : task.sequence->draft[from - tokens.size()]);
      }
      break;
    }
  }
}

}  // namespace pelago::serve
