#include "serve/sampling/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "chips/packed/rows.h"

namespace pelago::serve {

namespace {

using Candidate = SamplerScratch::Candidate;

constexpr float kColdest = 1e-4F;  // below, every draw would be the likeliest token anyway
constexpr float kNever = -std::numeric_limits<float>::infinity();

/// Equal weights by token, so that the order is one on every machine.
bool is_likelier(const Candidate& a, const Candidate& b) {
  return a.weight > b.weight || (a.weight == b.weight && a.token < b.token);
}

/// NaN and infinity, which a damaged model makes, count as never.
int32_t likeliest(std::span<const float> logits) {
  int32_t best = -1;
  float best_logit = kNever;
  for (size_t token = 0; token < logits.size(); ++token) {
    if (logits[token] > best_logit && logits[token] <= std::numeric_limits<float>::max()) {
      best_logit = logits[token];
      best = static_cast<int32_t>(token);
    }
  }
  return best;
}

/// The first count of the candidates become the likeliest ones, in order.
void put_likeliest_first(std::vector<Candidate>& candidates, size_t count) {
  const auto middle = candidates.begin() + static_cast<std::ptrdiff_t>(count);
  if (count < candidates.size()) {
    std::nth_element(candidates.begin(), middle, candidates.end(), is_likelier);
  }
  std::sort(candidates.begin(), middle, is_likelier);
}

double total_of(const std::vector<Candidate>& candidates) {
  // Four sums, since each addition waits for the one before.
  double sums[4] = {};
  const size_t num_whole = candidates.size() / 4 * 4;
  for (size_t idx = 0; idx < num_whole; idx += 4) {
    for (size_t i = 0; i < 4; ++i) sums[i] += candidates[idx + i].weight;
  }
  for (size_t idx = num_whole; idx < candidates.size(); ++idx) sums[0] += candidates[idx].weight;
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/// Keeps the fewest candidates that together have top_p of the mass, in the order they have.
/// Weights up to 1 are cut into strips by their first bits, a 32nd of their size wide; only the
/// strip where the border lies is put in order, half by half: of a flat distribution nearly all
/// tokens stay, and sorting them would take longer than a small model does.
void keep_top_p(SamplerScratch& scratch, float top_p) {
  constexpr std::ptrdiff_t kFew = 64;
  const auto strip_of = [](float weight) { return std::bit_cast<uint32_t>(weight) >> 18; };
  std::vector<Candidate>& candidates = scratch.candidates;
  scratch.strips.assign(strip_of(1.0F) + 1, 0.0);
  for (const Candidate& each : candidates) scratch.strips[strip_of(each.weight)] += each.weight;
  double total = 0;
  for (const double mass : scratch.strips) total += mass;
  const double wanted = static_cast<double>(top_p) * total;
  double kept = 0;  // by those that are likelier than the strip, and later than begin
  size_t strip = scratch.strips.size() - 1;
  for (; strip > 0 && kept + scratch.strips[strip] < wanted; --strip) kept += scratch.strips[strip];
  std::vector<Candidate>& border = scratch.border;
  border.clear();
  for (const Candidate& each : candidates) {
    if (strip_of(each.weight) == strip) border.push_back(each);
  }
  if (border.empty()) return;  // rounding asks for a crumb more than there is
  auto begin = border.begin(), end = border.end();
  while (end - begin > kFew) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, is_likelier);
    double half = 0;
    for (auto each = begin; each != middle; ++each) half += each->weight;
    if (kept + half >= wanted) {
      end = middle;
    } else {
      kept += half;
      begin = middle;
    }
  }
  std::sort(begin, end, is_likelier);
  auto last = begin;
  for (; last + 1 != end; ++last) {
    kept += last->weight;
    if (kept >= wanted) break;
  }
  std::erase_if(candidates, [&](const Candidate& c) { return is_likelier(*last, c); });
}

void refuse(const char* field, double value, const char* allowed) {
  fail_usage("{} is {}: it must be {}", field, value, allowed);
}

}  // namespace

void validate(const Sampling& sampling, int64_t vocab_size) {
  const auto is_in = [](float value, float low, float high) {
    return value >= low && value <= high;
  };
  if (!is_in(sampling.temperature, 0, 100)) {
    refuse("temperature", sampling.temperature, "between 0 and 100");
  }
  if (sampling.top_k < 0) refuse("top_k", sampling.top_k, "0 (all tokens) or more");
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) {
    refuse("top_p", sampling.top_p, "above 0 and at most 1");
  }
  if (!is_in(sampling.min_p, 0, 1)) refuse("min_p", sampling.min_p, "between 0 and 1");
  if (!(sampling.repetition_penalty > 0 && sampling.repetition_penalty <= 100)) {
    refuse("repetition_penalty", sampling.repetition_penalty, "above 0 and at most 100");
  }
  if (!is_in(sampling.presence_penalty, -2, 2)) {
    refuse("presence_penalty", sampling.presence_penalty, "between -2 and 2");
  }
  if (!is_in(sampling.frequency_penalty, -2, 2)) {
    refuse("frequency_penalty", sampling.frequency_penalty, "between -2 and 2");
  }
  for (const auto& [token, bias] : sampling.logit_bias) {
    if (token < 0 || token >= vocab_size) {
      fail_usage("logit_bias names token {}: tokens are 0 to {}", token, vocab_size - 1);
    }
    if (!is_in(bias, -100, 100)) refuse("logit_bias", bias, "between -100 and 100");
  }
}

Sampler::Sampler(const Sampling& sampling, std::span<const int32_t> prompt, const Rng& rng)
    : sampling_(sampling), rng_(rng) {
  if (sampling.repetition_penalty != 1) {
    for (const int32_t token : prompt) num_seen_.emplace(token, 0);
  }
}

void Sampler::note(int32_t token) {
  if (sampling_.repetition_penalty != 1 || sampling_.presence_penalty != 0 ||
      sampling_.frequency_penalty != 0) {
    ++num_seen_[token];
  }
}

bool Sampler::changes_logits() const { return !sampling_.logit_bias.empty() || !num_seen_.empty(); }

void Sampler::change(std::span<float> logits) const {
  for (const auto& [token, bias] : sampling_.logit_bias) logits[static_cast<size_t>(token)] += bias;
  for (const auto& [token, count] : num_seen_) {
    float& logit = logits[static_cast<size_t>(token)];
    logit = logit > 0 ? logit / sampling_.repetition_penalty : logit * sampling_.repetition_penalty;
    if (count > 0) {
      logit -= sampling_.presence_penalty + static_cast<float>(count) * sampling_.frequency_penalty;
    }
  }
}

std::optional<int32_t> Sampler::draw(std::span<const float> logits,
                                     const TokenMask* allowed,
                                     int64_t position,
                                     SamplerScratch& scratch) const {
  if (changes_logits() || allowed != nullptr) {
    scratch.logits.assign(logits.begin(), logits.end());
    change(scratch.logits);
    for (size_t token = 0; allowed != nullptr && token < scratch.logits.size(); ++token) {
      if (!is_allowed(*allowed, static_cast<int32_t>(token))) scratch.logits[token] = kNever;
    }
    logits = scratch.logits;
  }
  const int32_t best = likeliest(logits);
  if (best < 0) return std::nullopt;
  if (sampling_.temperature < kColdest || sampling_.top_k == 1) return best;

  // In the order of tokens, not of weights: a draft's distribution, which is much like the model's
  // but orders tokens otherwise, then gives the same token for most positions' numbers.
  const float best_logit = logits[static_cast<size_t>(best)];
  const float scale = 1 / sampling_.temperature;
  std::vector<Candidate>& candidates = scratch.candidates;
  scratch.weights.resize(logits.size());
  chips::packed::exp_below(logits.data(), best_logit, scale, logits.size(), scratch.weights.data());
  candidates.resize(logits.size());
  size_t num_candidates = 0;
  for (size_t token = 0; token < logits.size(); ++token) {
    const float weight = scratch.weights[token];
    candidates[num_candidates] = {static_cast<int32_t>(token), weight};
    num_candidates += logits[token] <= best_logit && weight > 0 ? 1 : 0;
  }
  candidates.resize(num_candidates);
  const auto top_k = static_cast<size_t>(sampling_.top_k);
  if (top_k > 0 && top_k < candidates.size()) {
    put_likeliest_first(candidates, top_k);
    candidates.resize(top_k);
  }
  if (sampling_.top_p < 1) keep_top_p(scratch, sampling_.top_p);
  // The likeliest token's weight is 1 here.
  if (sampling_.min_p > 0) {
    std::erase_if(candidates, [&](const Candidate& c) { return c.weight < sampling_.min_p; });
  }
  if (top_k > 0) std::ranges::sort(candidates, {}, &Candidate::token);

  double point =
      rng_.fork("token", static_cast<uint64_t>(position)).next_uniform() * total_of(candidates);
  for (const Candidate& candidate : candidates) {
    point -= candidate.weight;
    if (point < 0) return candidate.token;
  }
  return candidates.back().token;  // rounding left a crumb of the last share
}

TokenLogprob logprob_of(std::span<const float> logits, int32_t token, int num_top) {
  const int32_t best = likeliest(logits);
  const double shift = best < 0 ? 0 : logits[static_cast<size_t>(best)];
  double total = 0;
  std::vector<Candidate> candidates;
  candidates.reserve(logits.size());
  for (size_t idx = 0; idx < logits.size(); ++idx) {
    if (!std::isfinite(logits[idx])) continue;
    total += std::exp(logits[idx] - shift);
    if (num_top > 0) candidates.push_back({static_cast<int32_t>(idx), logits[idx]});
  }
  const double log_total = shift + std::log(total);
  TokenLogprob result;
  result.token = token;
  result.logprob = static_cast<float>(logits[static_cast<size_t>(token)] - log_total);
  const size_t count = std::min(static_cast<size_t>(std::max(num_top, 0)), candidates.size());
  put_likeliest_first(candidates, count);
  for (size_t idx = 0; idx < count; ++idx) {
    result.top.emplace_back(candidates[idx].token,
                            static_cast<float>(candidates[idx].weight - log_total));
  }
  return result;
}

}  // namespace pelago::serve
