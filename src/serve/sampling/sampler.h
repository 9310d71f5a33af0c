// From logits to the next token. The order: bias, penalties, what the constraint allows,
// temperature, top-k, top-p, min-p. A draw is a function of the logits, the settings and ONE number
// that belongs to the position: whether tokens were computed alone or in a batch, anew after a
// preemption, or guessed ahead and checked, the same seed gives the same text.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/error.h"
#include "base/rng.h"
#include "serve/engine.h"
#include "serve/sampling/token_mask.h"

namespace pelago::serve {

/// Throws Failure (exit 2) naming the field, its value and what is allowed.
void validate(const Sampling& sampling, int64_t vocab_size);

/// Memory for draws, shared by all samplers of a thread.
struct SamplerScratch {
  struct Candidate {
    int32_t token;
    float weight;
  };
  std::vector<float> logits, weights;  // [V]
  std::vector<Candidate> candidates, border;
  std::vector<double> strips;  // mass of the candidates whose weights begin with the same bits
};

/// One answer's. Belongs to one thread.
class Sampler {
 public:
  /// rng: of this answer alone.
  Sampler(const Sampling& sampling, std::span<const int32_t> prompt, const Rng& rng);

  /// The token at a position of the answer. logits: f32 [V]. allowed: null if every token is.
  /// Nothing if no allowed token has a finite logit.
  std::optional<int32_t> draw(std::span<const float> logits,
                              const TokenMask* allowed,
                              int64_t position,
                              SamplerScratch& scratch) const;
  /// The answer goes on with this token.
  void note(int32_t token);

 private:
  bool changes_logits() const;
  void change(std::span<float> logits) const;

  Sampling sampling_;
  Rng rng_;
  std::unordered_map<int32_t, int> num_seen_;  // how often in the answer; 0: in the prompt only
};

/// log softmax of the logits at token, and at the num_top likeliest, best first.
TokenLogprob logprob_of(std::span<const float> logits, int32_t token, int num_top);

}  // namespace pelago::serve
