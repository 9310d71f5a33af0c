#include "serve/local/batch_engine.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "serve/engine/fake_runner.h"

namespace pelago::serve {
namespace {

constexpr int32_t kEndToken = 256;

struct EngineBench {
  explicit EngineBench(const FakeRunner::Shape& shape,
                       const SchedulerLimits& limits = {.step_tokens = 32, .sequences_max = 8})
      : tokenizer(byte_tokenizer()),
        runner(shape),
        engine(runner, tokenizer, {.scheduler = limits, .end_tokens = {kEndToken}}) {}

  std::shared_ptr<Answer> ask(const GenerateRequest& request) {
    auto answer = std::make_shared<Answer>();
    last_id = next_id++;
    engine.submit(last_id, request, collect(answer));
    return answer;
  }
  void finish() {
    while (engine.step()) {
    }
  }

  data::Tokenizer tokenizer;
  FakeRunner runner;
  BatchEngine engine;
  RequestId next_id = 1, last_id = 0;
};

GenerateRequest simple_request(size_t num_prompt, int64_t max_new_tokens, uint64_t seed = 3) {
  GenerateRequest request;
  Rng rng = Rng(seed).fork("prompt");
  for (size_t idx = 0; idx < num_prompt; ++idx) {
    request.prompt.push_back(static_cast<int32_t>(rng.next_below(256)));
  }
  request.max_new_tokens = max_new_tokens;
  request.sampling.seed = seed;
  return request;
}

/// Many prompts that begin alike, all settings, some cancelled.
GenerateRequest random_request(Rng& rng) {
  GenerateRequest request;
  const uint64_t family = rng.next_below(3);
  Rng family_rng = Rng(99).fork("family", family);
  const uint64_t num_shared = rng.next_below(30);
  for (uint64_t idx = 0; idx < num_shared; ++idx) {
    request.prompt.push_back(static_cast<int32_t>(family_rng.next_below(256)));
  }
  const uint64_t num_own = 1 + rng.next_below(30);
  for (uint64_t idx = 0; idx < num_own; ++idx) {
    request.prompt.push_back(static_cast<int32_t>(rng.next_below(4)));
  }
  request.max_new_tokens = 1 + static_cast<int64_t>(rng.next_below(20));
  request.num_choices = rng.next_below(4) == 0 ? 1 + static_cast<int>(rng.next_below(4)) : 1;
  request.sampling.seed = rng.next_u64();
  if (rng.next_below(3) == 0) request.sampling.temperature = 0;
  if (rng.next_below(3) == 0) request.sampling.top_k = 5;
  if (rng.next_below(3) == 0) request.sampling.top_p = 0.7F;
  if (rng.next_below(4) == 0) request.sampling.min_p = 0.2F;
  if (rng.next_below(4) == 0) request.sampling.repetition_penalty = 1.3F;
  if (rng.next_below(4) == 0) request.sampling.frequency_penalty = 0.5F;
  request.user = fmt::format("user{}", rng.next_below(3));
  return request;
}

struct Asked {
  RequestId id;
  GenerateRequest request;
  std::shared_ptr<Answer> answer;
  bool is_cancelled = false;
};

void check_answer(const Asked& asked, int64_t context_length, uint64_t seed) {
  INFO("seed ", seed, " request ", asked.id);
  REQUIRE(asked.answer->is_over);
  for (const auto& [idx, choice] : asked.answer->choices) {
    const std::vector<int32_t> expected =
        expected_tokens(asked.request, idx, kEndToken, context_length, 260);
    if (choice.finish == Finish::kCancelled) {
      REQUIRE(choice.tokens.size() <= expected.size());
      CHECK(std::equal(choice.tokens.begin(), choice.tokens.end(), expected.begin()));
    } else {
      CHECK(choice.tokens == expected);
    }
  }
  if (!asked.is_cancelled) {
    CHECK(asked.answer->choices.size() == static_cast<size_t>(asked.request.num_choices));
  }
}

TEST_CASE("whatever else runs, is preempted, shared or cancelled, a request's tokens are its own") {
  uint64_t num_preempted = 0, num_cached = 0, num_cancelled = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    Rng rng = Rng(seed).fork("requests");
    const auto num_pages = static_cast<int64_t>(24 + rng.next_below(60));
    EngineBench bench({.num_pages = num_pages, .context_length = 80},
                      {.step_tokens = static_cast<int64_t>(4 + rng.next_below(60)),
                       .sequences_max = static_cast<int>(4 + rng.next_below(12))});
    std::vector<Asked> all;
    for (int idx = 0; idx < 40; ++idx) {
      GenerateRequest request = random_request(rng);
      REQUIRE(bench.engine.check(request).has_value());
      all.push_back({bench.next_id, request, bench.ask(request)});
      for (uint64_t steps = rng.next_below(6); steps > 0; --steps) bench.engine.step();
      if (rng.next_below(6) == 0) {
        Asked& unlucky = all[rng.next_below(all.size())];
        bench.engine.cancel(unlucky.id);
        unlucky.is_cancelled = true;
        CHECK(unlucky.answer->is_over);
      }
    }
    bench.finish();
    for (const Asked& asked : all) check_answer(asked, bench.engine.context_length(), seed);
    const EngineStats stats = bench.engine.stats();
    CHECK(stats.num_pages_used == 0);
    CHECK(stats.num_running + stats.num_waiting == 0);
    num_preempted += stats.num_preempted;
    num_cached += stats.cached_tokens;
    num_cancelled += stats.num_cancelled;
  }
  // The run proves nothing about what it did not do.
  CHECK(num_preempted > 100);
  CHECK(num_cached > 1000);
  CHECK(num_cancelled > 100);
}

TEST_CASE("after 10,000 random requests no page is held") {
  EngineBench bench({.num_pages = 48, .context_length = 80});
  Rng rng = Rng(17).fork("requests");
  uint64_t num_over = 0;
  for (int idx = 0; idx < 10'000; ++idx) {
    GenerateRequest request = random_request(rng);
    request.max_new_tokens = 1 + static_cast<int64_t>(rng.next_below(6));
    bench.ask(request);
    if (rng.next_below(8) == 0) bench.engine.cancel(bench.last_id);
    while (bench.engine.stats().num_waiting > 20) bench.engine.step();
  }
  bench.finish();
  const EngineStats stats = bench.engine.stats();
  num_over = stats.num_finished + stats.num_cancelled;
  CHECK(num_over == 10'000);
  CHECK(stats.num_pages_used == 0);
}

TEST_CASE("a prompt that came before is read from its pages") {
  EngineBench bench({.num_pages = 64, .page_tokens = 4});
  const auto first = bench.ask(simple_request(41, 1));
  bench.finish();
  const int64_t num_computed = bench.runner.num_tokens_computed;
  const auto second = bench.ask(simple_request(41, 1));
  bench.finish();
  CHECK(first->cached_tokens == 0);
  CHECK(second->cached_tokens == 40);
  CHECK(bench.runner.num_tokens_computed - num_computed == 1);
  CHECK(second->choices[0].tokens == first->choices[0].tokens);
}

TEST_CASE("prompts that come together compute only once what they share, and others do not wait") {
  EngineBench bench({.num_pages = 128, .page_tokens = 4}, {.step_tokens = 16, .sequences_max = 8});
  std::vector<std::shared_ptr<Answer>> alike;
  for (uint64_t idx = 0; idx < 4; ++idx) {
    GenerateRequest request = simple_request(40, 1);
    for (int32_t own = 0; own < 6; ++own) {
      request.prompt.push_back(static_cast<int32_t>(10 * idx) + own);
    }
    alike.push_back(bench.ask(request));
  }
  const auto other = bench.ask(simple_request(6, 1, 9));
  bench.finish();
  CHECK(bench.runner.num_tokens_computed == 40 + 4 * 6 + 6);
  CHECK(alike[0]->cached_tokens == 0);
  CHECK(alike[3]->cached_tokens == 40);
  CHECK(bench.runner.num_passes == 5);  // of 16 tokens: nobody idles while others wait
  CHECK(other->is_over);
  CHECK(bench.engine.stats().cached_tokens == 3 * 40);
}

TEST_CASE("one that computes for others and leaves is followed by the next of them") {
  EngineBench bench({.num_pages = 128, .page_tokens = 4}, {.step_tokens = 16, .sequences_max = 8});
  const auto first = bench.ask(simple_request(41, 3));
  const auto second = bench.ask(simple_request(41, 3));
  bench.engine.step();
  bench.engine.cancel(1);
  bench.finish();
  CHECK(first->is_over);
  CHECK(second->cached_tokens == 16);
  CHECK(second->choices[0].tokens.size() == 3);
}

TEST_CASE("a request of more choices than run at once runs alone") {
  EngineBench bench({.num_pages = 64}, {.step_tokens = 16, .sequences_max = 2});
  const auto before = bench.ask(simple_request(8, 4, 5));
  GenerateRequest request = simple_request(8, 4);
  request.num_choices = 5;
  const auto many = bench.ask(request);
  const auto after = bench.ask(simple_request(8, 4, 6));
  bench.finish();
  CHECK(before->is_over);
  CHECK(many->choices.size() == 5);
  CHECK(many->completion_tokens == 20);
  CHECK(after->is_over);
}

TEST_CASE("choices of one request share its prompt's pages") {
  EngineBench bench({.num_pages = 20, .page_tokens = 4});
  GenerateRequest request = simple_request(42, 3);
  request.num_choices = 4;
  const auto answer = bench.ask(request);
  bench.finish();
  CHECK(answer->choices.size() == 4);
  CHECK(answer->completion_tokens == 12);
  CHECK(bench.runner.num_tokens_computed == 42 + 4 * 2);  // the last tokens are never computed
  CHECK(answer->choices[0].tokens != answer->choices[1].tokens);
}

TEST_CASE("a user with many requests does not keep another one waiting") {
  EngineBench bench({.num_pages = 64}, {.step_tokens = 16, .sequences_max = 1});
  std::vector<std::shared_ptr<Answer>> crowd;
  for (uint64_t idx = 0; idx < 10; ++idx) {
    GenerateRequest request = simple_request(8, 4, idx + 10);
    request.user = "crowd";
    crowd.push_back(bench.ask(request));
  }
  for (int step = 0; step < 6; ++step) bench.engine.step();
  GenerateRequest request = simple_request(8, 4, 50);
  request.user = "single";
  const auto single = bench.ask(request);
  while (!single->is_over) REQUIRE(bench.engine.step());
  const auto is_over = [](const auto& answer) { return answer->is_over; };
  CHECK(std::ranges::count_if(crowd, is_over) <= 3);
}

TEST_CASE("an answer ends before its stop string, which two tokens share") {
  EngineBench bench({.num_pages = 64});
  GenerateRequest request = simple_request(8, 30);
  for (int32_t token = 128; token < 260; ++token) request.sampling.logit_bias[token] = -100;
  const auto whole = bench.ask(request);
  bench.finish();
  const std::string text = whole->choices[0].text;
  REQUIRE(text.size() == 30);
  request.stop = {text.substr(10, 2)};
  const auto stopped = bench.ask(request);
  bench.finish();
  CHECK(stopped->choices[0].text == text.substr(0, text.find(request.stop[0])));
  CHECK(stopped->choices[0].finish == Finish::kStop);
  CHECK(whole->choices[0].finish == Finish::kLength);
}

TEST_CASE("what can never be served is refused with a reason") {
  EngineBench bench({.num_pages = 64, .context_length = 50});
  const auto reason = [&](auto change) {
    GenerateRequest request = simple_request(10, 5);
    change(request);
    const Status status = bench.engine.check(request);
    return status ? std::string("fine") : status.error().message;
  };
  CHECK(reason([](auto&) {}) == "fine");
  CHECK(reason([](auto& r) { r.prompt.assign(50, 1); }) ==
        "the prompt has 50 tokens, the context holds 50: shorten it by 1 or more");
  CHECK(reason([](auto& r) { r.prompt.clear(); }) == "the prompt has no tokens: give at least one");
  CHECK(reason([](auto& r) { r.prompt[3] = 260; }) == "token 260 is not in the vocabulary of 260");
  CHECK(reason([](auto& r) { r.prompt[3] = -1; }) == "token -1 is not in the vocabulary of 260");
  CHECK(reason([](auto& r) { r.num_choices = 1'000'000'000; }).starts_with("num_choices is"));
  CHECK(reason([](auto& r) { r.max_new_tokens = 0; }).starts_with("max_new_tokens is 0"));
  CHECK(reason([](auto& r) { r.stop.assign(10'000, "x"); }) == "10000 stop strings: at most 64");
  CHECK(reason([](auto& r) { r.stop = {""}; }).starts_with("a stop string of 0 bytes"));
  CHECK(reason([](auto& r) { r.sampling.temperature = NAN; }).starts_with("temperature is nan"));
  CHECK(reason([](auto& r) { r.sampling.top_p = 0; }).starts_with("top_p is 0"));
  CHECK(reason([](auto& r) { r.sampling.top_k = -1; }).starts_with("top_k is -1"));
  CHECK(reason([](auto& r) { r.sampling.logit_bias[260] = 1; }) ==
        "logit_bias names token 260: tokens are 0 to 259");
  CHECK(reason([](auto& r) { r.num_logprobs = 1000; }).starts_with("num_logprobs is 1000"));
}

TEST_CASE("an embedding has length 1, is the same whatever came before, and keeps no page") {
  EngineBench bench({.num_pages = 64, .max_batch_tokens = 40},
                    {.step_tokens = 32, .sequences_max = 8, .choices_max = 8});
  const GenerateRequest request = simple_request(90, 1);
  const auto first = bench.engine.embed(request.prompt);
  REQUIRE(first.has_value());
  double squares = 0;
  for (const float value : *first) squares += value * value;
  CHECK(squares == doctest::Approx(1));
  bench.ask(simple_request(30, 10));
  bench.finish();
  CHECK(*bench.engine.embed(request.prompt) == *first);
  CHECK(bench.engine.stats().num_pages_used == 0);
}

TEST_CASE("log probabilities are those of the model, whatever is drawn from them") {
  EngineBench bench({.num_pages = 64});
  GenerateRequest request = simple_request(8, 6);
  request.num_logprobs = 3;
  request.sampling.top_k = 2;
  const auto answer = bench.ask(request);
  bench.finish();
  const Answer::Choice& choice = answer->choices[0];
  REQUIRE(choice.logprobs.size() == 6);
  uint64_t hash = 0;
  for (const int32_t token : request.prompt) hash = hash_token(hash, token);
  for (size_t idx = 0; idx < 6; ++idx) {
    std::vector<float> logits(260);
    hash_logits(hash, logits);
    double total = 0;
    for (const float logit : logits) total += std::exp(logit);
    const TokenLogprob& logprob = choice.logprobs[idx];
    CHECK(logprob.token == choice.tokens[idx]);
    CHECK(std::exp(logprob.logprob) ==
          doctest::Approx(std::exp(logits[static_cast<size_t>(logprob.token)]) / total));
    CHECK(logprob.top.size() == 3);
    CHECK(logprob.top[0].second >= logprob.top[1].second);
    CHECK((logprob.top[0].first == logprob.token || logprob.top[1].first == logprob.token));
    hash = hash_token(hash, logprob.token);
  }
}

/// Knows what will be drawn, and lies about every third token.
class LyingDrafter final : public Drafter {
 public:
  explicit LyingDrafter(const std::vector<Asked>& all) : all_(all) {}
  void propose(std::span<const DraftTask> tasks) override {
    for (const DraftTask& task : tasks) {
      Sequence& sequence = *task.sequence;
      const Asked& asked = all_[sequence.request - 1];
      const std::vector<int32_t> truth =
          expected_tokens(asked.request, sequence.choice, kEndToken, 80, 260);
      const auto at = static_cast<size_t>(sequence.num_tokens() - sequence.num_prompt);
      for (size_t idx = at; idx < truth.size() && idx < at + static_cast<size_t>(task.num_wanted);
           ++idx) {
        const bool is_lie = rng_.next_below(3) == 0;
        sequence.draft.push_back(is_lie ? static_cast<int32_t>(rng_.next_below(260)) : truth[idx]);
      }
    }
  }
  void forget(const Sequence&) override {}

 private:
  const std::vector<Asked>& all_;
  Rng rng_ = Rng(4).fork("lies");
};

TEST_CASE("guesses, right or wrong, change how many passes it takes and nothing else") {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Rng rng = Rng(seed).fork("guessed requests");
    const data::Tokenizer tokenizer = byte_tokenizer();
    std::vector<Asked> all;
    FakeRunner runner({.num_pages = 30, .context_length = 80});
    BatchEngine engine(runner,
                       tokenizer,
                       {.scheduler = {.step_tokens = 32, .sequences_max = 6},
                        .speculation = {.draft_max = 6, .rows_max = 20},
                        .end_tokens = {kEndToken}},
                       std::make_unique<LyingDrafter>(all));
    for (RequestId id = 1; id <= 30; ++id) {
      all.push_back({id, random_request(rng), std::make_shared<Answer>()});
      engine.submit(id, all.back().request, collect(all.back().answer));
    }
    while (engine.step()) {
    }
    for (const Asked& asked : all) check_answer(asked, engine.context_length(), seed);
    const EngineStats stats = engine.stats();
    CHECK(stats.num_pages_used == 0);
    CHECK(stats.draft_accepted > stats.draft_tokens / 4);
    CHECK(stats.draft_accepted < stats.draft_tokens * 3 / 4);
  }
}

TEST_CASE("a text that repeats itself is guessed from itself") {
  EngineBench bench({.num_pages = 64});
  GenerateRequest request = simple_request(8, 120);
  // The bias leaves one token: the answer is a run of it.
  request.sampling.logit_bias[65] = 100;
  const auto answer = bench.ask(request);
  bench.finish();
  CHECK(answer->choices[0].text == std::string(120, 'A'));
  CHECK(bench.runner.num_passes < 30);
}

}  // namespace
}  // namespace pelago::serve
