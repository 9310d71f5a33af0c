#include "serve/sampling/sampler.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace pelago::serve {
namespace {

const std::vector<float> kLogits = {1.0F, 3.0F, 2.0F, 0.0F, 2.5F, -1.0F};

template <typename Change>
Sampling sampling_with(const Change& change) {
  Sampling sampling;
  change(sampling);
  return sampling;
}

/// How often each token comes in so many draws.
std::vector<int> histogram(const Sampling& sampling,
                           int num_draws,
                           const TokenMask* mask = nullptr) {
  Sampler sampler(sampling, {}, Rng(11));
  SamplerScratch scratch;
  std::vector<int> counts(kLogits.size());
  for (int position = 0; position < num_draws; ++position) {
    ++counts[static_cast<size_t>(*sampler.draw(kLogits, mask, position, scratch))];
  }
  return counts;
}

/// Pearson's statistic against softmax(logits / temperature) over the tokens in `kept`.
double chi_squared(const std::vector<int>& counts,
                   float temperature,
                   const std::vector<int>& kept) {
  double total = 0, num_draws = 0;
  for (const int token : kept) total += std::exp(kLogits[static_cast<size_t>(token)] / temperature);
  for (const int count : counts) num_draws += count;
  double sum = 0;
  for (const int token : kept) {
    const auto idx = static_cast<size_t>(token);
    const double wanted = num_draws * std::exp(kLogits[idx] / temperature) / total;
    sum += (counts[idx] - wanted) * (counts[idx] - wanted) / wanted;
  }
  return sum;
}

TEST_CASE("draws follow the softmax, cut as asked") {
  const std::vector<int> all = {0, 1, 2, 3, 4, 5};
  Sampling sampling;
  CHECK(chi_squared(histogram(sampling, 20'000), 1, all) < 20.5);  // 5 degrees: p = 0.001
  sampling.temperature = 0.5F;
  CHECK(chi_squared(histogram(sampling, 20'000), 0.5F, all) < 20.5);
  sampling = sampling_with([](Sampling& s) { s.top_k = 3; });
  const auto three = histogram(sampling, 20'000);
  CHECK(three[0] + three[3] + three[5] == 0);
  CHECK(chi_squared(three, 1, {1, 2, 4}) < 13.8);                 // 2 degrees
  sampling = sampling_with([](Sampling& s) { s.top_p = 0.6F; });  // 0.46 + 0.28
  const auto two = histogram(sampling, 20'000);
  CHECK(two[1] + two[4] == 20'000);
  CHECK(chi_squared(two, 1, {1, 4}) < 10.8);  // 1 degree
  sampling = sampling_with(
      [](Sampling& s) { s.min_p = 0.3F; });  // exp(-1) = 0.37 stays, exp(-2) = 0.14 goes
  const auto likely = histogram(sampling, 20'000);
  CHECK(likely[1] + likely[4] + likely[2] == 20'000);
  TokenMask mask = empty_mask(6);
  allow(mask, 0);
  allow(mask, 3);
  const auto masked = histogram(Sampling(), 20'000, &mask);
  CHECK(masked[0] + masked[3] == 20'000);
  CHECK(chi_squared(masked, 1, {0, 3}) < 10.8);
}

TEST_CASE("the likeliest token is drawn at temperature 0, the first one of equals") {
  const Sampling sampling = sampling_with([](Sampling& s) { s.temperature = 0; });
  CHECK(histogram(sampling, 10)[1] == 10);
  Sampler sampler(sampling, {}, Rng(1));
  SamplerScratch scratch;
  const std::vector<float> equal = {1, 2, 2, 2};
  CHECK(*sampler.draw(equal, nullptr, 0, scratch) == 1);
  CHECK(histogram(sampling_with([](Sampling& s) { s.temperature = 1e-30F; }), 10)[1] == 10);
}

TEST_CASE("bias and penalties move the logits as their formulas say") {
  SamplerScratch scratch;
  const Sampling biased = sampling_with([](Sampling& s) {
    s.temperature = 0;
    s.logit_bias = {{5, 10.0F}};
  });
  CHECK(*Sampler(biased, {}, Rng(1)).draw(kLogits, nullptr, 0, scratch) == 5);

  // The likeliest, 3, becomes 3 / 1.3 = 2.3, below the second's 2.5.
  const std::vector<int32_t> prompt = {1};
  const Sampling repeated = sampling_with([](Sampling& s) {
    s.temperature = 0;
    s.repetition_penalty = 1.3F;
  });
  CHECK(*Sampler(repeated, prompt, Rng(1)).draw(kLogits, nullptr, 0, scratch) == 4);

  // Presence counts once, in the answer only; frequency each time.
  const Sampling present = sampling_with([](Sampling& s) {
    s.temperature = 0;
    s.presence_penalty = 0.4F;
  });
  Sampler presence(present, prompt, Rng(1));
  CHECK(*presence.draw(kLogits, nullptr, 0, scratch) == 1);
  presence.note(1);
  presence.note(1);
  CHECK(*presence.draw(kLogits, nullptr, 0, scratch) == 1);
  const Sampling frequent = sampling_with([](Sampling& s) {
    s.temperature = 0;
    s.frequency_penalty = 0.4F;
  });
  Sampler frequency(frequent, prompt, Rng(1));
  frequency.note(1);
  CHECK(*frequency.draw(kLogits, nullptr, 0, scratch) == 1);
  frequency.note(1);
  CHECK(*frequency.draw(kLogits, nullptr, 0, scratch) == 4);
}

TEST_CASE("of a whole vocabulary top_p keeps the fewest tokens that have so much of the mass") {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    Rng rng = Rng(seed).fork("logits");
    // From nearly flat to nearly certain, some seeds with many equal weights.
    const double width = 0.05 * static_cast<double>(1 + rng.next_below(120));
    const bool has_equals = rng.next_below(3) == 0;
    std::vector<float> logits(500 + rng.next_below(3000));
    for (float& logit : logits) {
      const double value = width * rng.next_normal();
      logit = static_cast<float>(has_equals ? std::round(value) : value);
    }
    std::vector<std::pair<double, int32_t>> likeliest_first;
    double total = 0;
    for (size_t token = 0; token < logits.size(); ++token) {
      total += std::exp(double{logits[token]});
      likeliest_first.emplace_back(-std::exp(double{logits[token]}), static_cast<int32_t>(token));
    }
    std::ranges::sort(likeliest_first);
    const Sampling sampling = sampling_with(
        [&](Sampling& s) { s.top_p = 0.02F + 0.96F * static_cast<float>(rng.next_uniform()); });
    // The mass of those before a token, and with it: the border may lie either way of a rounding.
    std::vector<double> before(logits.size());
    double mass = 0;
    for (const auto& [weight, token] : likeliest_first) {
      before[static_cast<size_t>(token)] = mass / total;
      mass -= weight;
    }
    const Sampler sampler(sampling, {}, Rng(seed));
    SamplerScratch scratch;
    double lightest = 0;
    for (int position = 0; position < 600; ++position) {
      const int32_t token = *sampler.draw(logits, nullptr, position, scratch);
      lightest = std::max(lightest, before[static_cast<size_t>(token)]);
    }
    CHECK(lightest < sampling.top_p + 1e-5);
    // None that belong are left out: the candidates are what was kept.
    double kept = 0;
    for (const auto& candidate : scratch.candidates) {
      kept += std::exp(double{logits[static_cast<size_t>(candidate.token)]}) / total;
    }
    CHECK(kept > sampling.top_p - 1e-5);
    CHECK(std::ranges::is_sorted(scratch.candidates, {}, &SamplerScratch::Candidate::token));
  }
}

TEST_CASE("a damaged row gives a token of what is left of it, or none") {
  SamplerScratch scratch;
  const Sampler sampler(Sampling(), {}, Rng(1));
  const float nan = std::nanf("");
  CHECK(*sampler.draw(std::vector<float>{nan, 1, nan}, nullptr, 0, scratch) == 1);
  CHECK_FALSE(sampler.draw(std::vector<float>{nan, nan}, nullptr, 0, scratch).has_value());
  CHECK_FALSE(
      sampler.draw(std::vector<float>{-INFINITY, INFINITY}, nullptr, 0, scratch).has_value());
}

}  // namespace
}  // namespace pelago::serve
