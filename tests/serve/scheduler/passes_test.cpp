// What the scheduler puts into a pass, counted by the tokens that the runner computes.
#include <doctest/doctest.h>

#include <vector>

#include "base/rng.h"
#include "serve/engine/fake_runner.h"
#include "serve/local/batch_engine.h"

namespace pelago::serve {
namespace {

TEST_CASE("a prompt that a pass brings to its end waits for no other, once the pass is worth it") {
  const auto tokens_of_passes = [](size_t num_prompt, int num_requests) {
    const data::Tokenizer tokenizer = byte_tokenizer();
    FakeRunner runner({.num_pages = 100});
    BatchEngine engine(
        runner,
        tokenizer,
        {.scheduler = {.step_tokens = 100, .enough_tokens = 32, .sequences_max = 8}});
    for (int idx = 0; idx < num_requests; ++idx) {
      GenerateRequest request;
      Rng rng = Rng(100).fork("prompt", static_cast<uint64_t>(idx));
      for (size_t token = 0; token < num_prompt; ++token) {
        request.prompt.push_back(static_cast<int32_t>(rng.next_below(256)));
      }
      request.max_new_tokens = 9;
      request.sampling.seed = 3;
      request.ignore_end = true;
      engine.submit(static_cast<RequestId>(idx + 1), request, [](const Piece&) {});
    }
    std::vector<int64_t> tokens;
    for (int pass = 0; pass < 3; ++pass) {
      const int64_t num_before = runner.num_tokens_computed;
      engine.step();
      tokens.push_back(runner.num_tokens_computed - num_before);
    }
    return tokens;
  };
  using Tokens = std::vector<int64_t>;
  CHECK(tokens_of_passes(40, 3) == Tokens{40, 1 + 40, 2 + 40});
  // Short ones go together until there are enough of them.
  CHECK(tokens_of_passes(10, 6) == Tokens{40, 4 + 20, 6});
  // A long one that is not at its end leaves what is left of the second pass to the next.
  CHECK(tokens_of_passes(120, 2) == Tokens{100, 20 + 80, 1 + 40});
}

}  // namespace
}  // namespace pelago::serve
