// What the tests of split engines share: a runner of two layers whose tokens are known beforehand,
// requests for it, and the check of what came of them.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <memory>

#include "base/rng.h"
#include "serve/engine/fake_runner.h"

namespace pelago::serve {

inline constexpr int32_t kSplitEnd = 256;

/// Tells of its first layer itself, and leaves the second to be found out.
class TwoLayerRunner final : public FakeRunner {
 public:
  using FakeRunner::FakeRunner;
  RunnerOutput forward(std::span<const SequenceChunk> chunks) override {
    const RunnerOutput output = FakeRunner::forward(chunks);
    if (layer_watch_) layer_watch_(0);
    return output;
  }
  int64_t num_layers() const override { return 2; }
  int64_t bytes_per_page() const override { return 4 * page_tokens(); }
};

inline GenerateRequest split_request(Rng& rng, size_t own_max = 40) {
  GenerateRequest request;
  Rng family = Rng(5).fork("family", rng.next_below(3));
  for (uint64_t idx = 0, shared = rng.next_below(30); idx < shared; ++idx) {
    request.prompt.push_back(static_cast<int32_t>(family.next_below(256)));
  }
  for (uint64_t idx = 0, own = 1 + rng.next_below(own_max); idx < own; ++idx) {
    request.prompt.push_back(static_cast<int32_t>(rng.next_below(4)));
  }
  request.max_new_tokens = 1 + static_cast<int64_t>(rng.next_below(20));
  request.num_choices = rng.next_below(4) == 0 ? 1 + static_cast<int>(rng.next_below(3)) : 1;
  request.sampling.seed = rng.next_u64();
  if (rng.next_below(2) == 0) request.sampling.repetition_penalty = 1.3F;
  return request;
}

struct SplitAsked {
  RequestId id;
  GenerateRequest request;
  std::shared_ptr<Answer> answer;
};

inline void check_split_answer(const SplitAsked& asked, int64_t context_length) {
  REQUIRE(asked.answer->is_over);
  for (const auto& [idx, choice] : asked.answer->choices) {
    const auto expected = expected_tokens(asked.request, idx, kSplitEnd, context_length, 260);
    if (choice.finish == Finish::kCancelled) {
      REQUIRE(choice.tokens.size() <= expected.size());
      CHECK(std::equal(choice.tokens.begin(), choice.tokens.end(), expected.begin()));
    } else {
      CHECK(choice.tokens == expected);
    }
  }
}

}  // namespace pelago::serve
