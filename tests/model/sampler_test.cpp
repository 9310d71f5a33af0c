#include "model/generation/sampler.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "model/model_support.h"

namespace pelago::model {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

/// How often each of the tokens is drawn.
std::vector<double> shares(const Tensor& logits, const SamplingOptions& options) {
  constexpr int kDraws = 20000;
  Rng rng(11);
  std::vector<double> shares(static_cast<size_t>(logits.numel()));
  for (int draw = 0; draw < kDraws; ++draw) {
    shares[static_cast<size_t>(sample_next(logits, options, rng))] += 1.0 / kDraws;
  }
  return shares;
}

const Tensor& half_third_sixth() {
  static const Tensor logits = at::tensor({std::log(2.F), std::log(3.F), kNever, std::log(1.F)});
  return logits;
}

TEST_CASE("tokens are drawn by their probability and one of none never") {
  const auto got = shares(half_third_sixth(), {.temperature = 1, .top_p = 1});
  CHECK(got[0] == doctest::Approx(2.0 / 6).epsilon(0.05));
  CHECK(got[1] == doctest::Approx(3.0 / 6).epsilon(0.05));
  CHECK(got[2] == 0);
  CHECK(got[3] == doctest::Approx(1.0 / 6).epsilon(0.05));
}

TEST_CASE("top_p keeps the fewest tokens that reach it, top_k the likeliest") {
  CHECK(shares(half_third_sixth(), {.temperature = 1, .top_p = 0.45})[1] > 0.9999);
  CHECK(shares(half_third_sixth(), {.temperature = 1, .top_p = 0.8})[3] == 0);
  CHECK(shares(half_third_sixth(), {.temperature = 1, .top_p = 0.8})[0] > 0.3);
  CHECK(shares(half_third_sixth(), {.temperature = 1, .top_p = 1, .top_k = 2})[3] == 0);
}

TEST_CASE("temperature squares or flattens the odds and zero takes the first of the likeliest") {
  const auto sharp = shares(half_third_sixth(), {.temperature = 0.5, .top_p = 1});
  CHECK(sharp[1] / sharp[0] == doctest::Approx(9.0 / 4).epsilon(0.07));
  Rng rng(1);
  CHECK(sample_next(at::tensor({1.F, 5.F, 5.F}), {.temperature = 0}, rng) == 1);
}

TEST_CASE("logits of which none is finite are refused") {
  Rng rng(1);
  const Tensor logits = torch::full({4}, std::numeric_limits<float>::quiet_NaN());
  CHECK(failure_of([&] { sample_next(logits, {}, rng); }).find("no logit is finite") == 0);
}

TEST_CASE("options outside their range are named") {
  CHECK(failure_of([] { SamplingOptions{.temperature = -1}.validate(); }) ==
        "temperature is -1: it must be between 0 and 100");
  CHECK(failure_of([] { SamplingOptions{.top_p = 0}.validate(); }).find("top_p is 0") == 0);
  CHECK(failure_of([] { SamplingOptions{.top_k = -2}.validate(); }).find("top_k is -2") == 0);
  CHECK(failure_of([] { SamplingOptions{.max_tokens = 0}.validate(); }).find("max_tokens") == 0);
}

struct TinyModel {
  ModelConfig config = tiny_config("qwen3", true);
  Parameters parameters{config, lively_weights(config, 2)};
  Transformer transformer{config, parameters};
};

TEST_CASE("the same seed generates the same tokens and another seed others") {
  const TinyModel model;
  const std::vector<int64_t> prompt = {1, 2, 3};
  const auto run = [&](uint64_t seed) {
    return generate(
        model.transformer, prompt, {.seed = seed, .max_tokens = 20}, [](int64_t) { return true; });
  };
  CHECK(run(1).size() == 20);
  CHECK(run(1) == run(1));
  CHECK(run(1) != run(2));
}

TEST_CASE("generation ends at the end of text, on request, and when the context is full") {
  TinyModel model;
  const std::vector<int64_t> prompt = {1, 2, 3};
  const SamplingOptions greedy = {.temperature = 0, .max_tokens = 1000};
  const auto always = [](int64_t) { return true; };
  const auto all = generate(model.transformer, prompt, greedy, always);
  CHECK(all.size() == 64 - 3);  // max_position_embeddings less the prompt
  CHECK(generate(model.transformer, prompt, greedy, [](int64_t) { return false; }).size() == 1);

  ModelConfig with_end = model.config;
  with_end.eos_token_id = all[0];
  const Transformer ending(with_end, model.parameters);
  CHECK(generate(ending, prompt, greedy, always).empty());
}

TEST_CASE("a prompt that is empty or fills the context is refused") {
  const TinyModel model;
  const auto go_on = [](int64_t) { return true; };
  CHECK(failure_of([&] { generate(model.transformer, {}, {}, go_on); }) ==
        "the prompt has no tokens: give at least one");
  const std::vector<int64_t> prompt(64, 1);
  CHECK(failure_of([&] { generate(model.transformer, prompt, {}, go_on); }) ==
        "the prompt has 64 tokens but the model's context holds 64: shorten it");
}

}  // namespace
}  // namespace pelago::model
