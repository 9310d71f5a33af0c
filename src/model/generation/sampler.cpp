#include "model/generation/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace pelago::model {

namespace {

struct Candidate {
  int64_t token;
  double weight;  // its logit, later its share of probability
};

/// By weight; equal weights by token, so that the order is one on every machine.
bool is_likelier(const Candidate& a, const Candidate& b) {
  return a.weight > b.weight || (a.weight == b.weight && a.token < b.token);
}

/// Finite logits, likeliest first.
std::vector<Candidate> ranked_candidates(const Tensor& logits, int64_t num_wanted) {
  const Tensor host = logits.reshape({-1}).to(at::kCPU).to(at::kFloat).contiguous();  // [V]
  const float* values = host.data_ptr<float>();
  std::vector<Candidate> candidates;
  for (int64_t token = 0; token < host.numel(); ++token) {
    if (std::isfinite(values[token])) candidates.push_back({token, values[token]});
  }
  if (candidates.empty()) fail("no logit is finite: the weights are damaged or training diverged");
  const auto num_candidates = static_cast<int64_t>(candidates.size());
  const int64_t num_kept = num_wanted > 0 ? std::min(num_wanted, num_candidates) : num_candidates;
  std::partial_sort(
      candidates.begin(), candidates.begin() + num_kept, candidates.end(), is_likelier);
  candidates.resize(static_cast<size_t>(num_kept));
  return candidates;
}

}  // namespace

void SamplingOptions::validate() const {
  if (!(temperature >= 0 && temperature <= 100)) {
    fail_usage("temperature is {}: it must be between 0 and 100", temperature);
  }
  if (!(top_p > 0 && top_p <= 1)) {
    fail_usage("top_p is {}: it must be above 0 and at most 1", top_p);
  }
  if (top_k < 0) fail_usage("top_k is {}: it must be 0 (all tokens) or more", top_k);
  if (max_tokens < 1) fail_usage("max_tokens is {}: it must be 1 or more", max_tokens);
}

int64_t sample_next(const Tensor& logits, const SamplingOptions& options, Rng& rng) {
  const bool is_greedy = options.temperature == 0;
  std::vector<Candidate> candidates = ranked_candidates(logits, is_greedy ? 1 : options.top_k);
  if (is_greedy) return candidates.front().token;

  const double best = candidates.front().weight;
  double total = 0;
  for (Candidate& candidate : candidates) {
    candidate.weight = std::exp((candidate.weight - best) / options.temperature);
    total += candidate.weight;
  }
  double kept = 0;
  size_t num_kept = 0;
  while (num_kept < candidates.size() && (num_kept == 0 || kept < options.top_p * total)) {
    kept += candidates[num_kept++].weight;
  }
  double point = rng.next_uniform() * kept;
  for (size_t idx = 0; idx < num_kept; ++idx) {
    point -= candidates[idx].weight;
    if (point < 0) return candidates[idx].token;
  }
  return candidates[num_kept - 1].token;  // rounding left a crumb of the last share
}

std::vector<int64_t> generate(const Transformer& transformer,
                              std::span<const int64_t> prompt,
                              const SamplingOptions& options,
                              const std::function<bool(int64_t token)>& on_token) {
  options.validate();
  const ModelConfig& config = transformer.config();
  const int64_t context = config.max_position_embeddings;
  const auto num_prompt = static_cast<int64_t>(prompt.size());
  if (prompt.empty()) fail_usage("the prompt has no tokens: give at least one");
  if (num_prompt >= context) {
    fail_usage("the prompt has {} tokens but the model's context holds {}: shorten it",
               num_prompt,
               context);
  }
  const Tensor& flat = transformer.parameters().flat();
  KvCache cache(config, /*batch=*/1, flat.device(), flat.scalar_type());
  const auto read = [&](std::span<const int64_t> tokens) {
    const auto num_tokens = static_cast<int64_t>(tokens.size());
    const Tensor host = at::empty({1, num_tokens}, at::kLong);
    std::copy(tokens.begin(), tokens.end(), host.data_ptr<int64_t>());
    return transformer.next_logits(host.to(flat.device()), cache);
  };

  constexpr size_t kPrefillTokens = 512;  // bounds the activations of a long prompt
  Tensor logits;                          // [1,V]
  for (size_t begin = 0; begin < prompt.size(); begin += kPrefillTokens) {
    logits = read(prompt.subspan(begin, std::min(kPrefillTokens, prompt.size() - begin)));
  }
  Rng rng = Rng(options.seed).fork("sample");
  std::vector<int64_t> generated;
  while (true) {
    const int64_t token = sample_next(logits, options, rng);
    if (token == config.eos_token_id) return generated;
    generated.push_back(token);
    const bool is_full = cache.num_tokens() + 1 >= context;
    const bool is_enough = static_cast<int64_t>(generated.size()) >= options.max_tokens;
    if (!on_token(token) || is_full || is_enough) return generated;
    logits = read(std::span(&token, 1));
  }
}

}  // namespace pelago::model
