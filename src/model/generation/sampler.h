// Token-level generation: from logits to the next token, and the loop around it. Text and stop
// strings belong to whoever has the tokenizer.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/rng.h"
#include "chips/tensor.h"
#include "model/transformer.h"

namespace pelago::model {

struct SamplingOptions {
  double temperature = 0.8;  // 0: always the most likely token
  double top_p = 0.95;       // the fewest tokens that together have this probability; 1: all
  int64_t top_k = 0;         // the most likely tokens considered; 0: all
  uint64_t seed = 1;
  int64_t max_tokens = 128;  // generated at most
  void validate() const;     // throws Failure (exit 2) naming field, value and allowed range
};

/// Draws a token. logits: f32 [V] or [1,V], on any device. The same logits, options and generator
/// give the same token. temperature is applied first, then top_k, then top_p. Throws Failure if no
/// logit is finite.
int64_t sample_next(const Tensor& logits, const SamplingOptions& options, Rng& rng);

/// Reads the prompt (at least one token; in chunks), then draws until the config's end-of-text
/// token, max_tokens, a full context, or on_token returning false. on_token sees each token but the
/// end of text. Returns what it saw. Throws Failure (exit 2) if the prompt fills the context.
std::vector<int64_t> generate(const Transformer& transformer,
                              std::span<const int64_t> prompt,
                              const SamplingOptions& options,
                              const std::function<bool(int64_t token)>& on_token);

}  // namespace pelago::model
