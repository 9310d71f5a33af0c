// One answer in the making, as the scheduler sees it: its tokens, how many of them have been
// computed, and the pages that hold the result.
#pragma once

#include <cstdint>
#include <vector>

#include "serve/engine.h"
#include "serve/pages/page_table.h"
#include "serve/scheduler/draft_pace.h"

namespace pelago::serve {

struct Sequence {
  explicit Sequence(PagePool& pool) : pages(pool) {}

  RequestId request = 0;
  int choice = 0;
  std::vector<int32_t> tokens;  // the prompt, then what was drawn
  int64_t num_prompt = 0;
  int64_t num_cached = 0;      // tokens that were in the pages when it was first admitted
  int64_t num_computed = 0;    // tokens whose keys and values lie in the pages
  std::vector<int32_t> draft;  // guesses at what follows, to be checked in the next pass
  DraftPace pace;
  PageTable pages;
  bool has_begun = false;  // since it was admitted; until then its prefix may still grow
  bool was_begun = false;  // ever, before it was preempted
  int num_forks = 0;       // choices that will share its pages once the prompt is read
  uint64_t turn = 0;       // order of admission; whoever came first is preempted last

  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_pending() const { return num_tokens() - num_computed; }
  /// Only the token drawn last is not computed yet.
  bool is_decoding() const { return num_pending() == 1 && num_tokens() > num_prompt; }
};

}  // namespace pelago::serve
