// Speculative decoding (arXiv:2211.17192): something cheap guesses the next tokens, the model reads
// them all in one pass, and those that it would have drawn itself are kept. Here the model draws
// every token as if nothing had been guessed, with the random number that belongs to the position,
// and a guess is only compared with it: so text is not merely of the same distribution as without
// guessing, it is the same text. How often guesses hold is all that a drafter decides.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "serve/sampling/sampler.h"
#include "serve/scheduler/sequence.h"

namespace pelago::serve {

struct SpeculationOptions {
  int draft_max = 8;  // tokens guessed at once; 0: no guessing
  /// Tokens of all decoding sequences in a pass, guesses among them: up to about this many rows a
  /// pass takes hardly longer than with one, since it waits for the weights; beyond, it computes.
  int rows_max = 16;
  int ngram_tokens = 3;  // that must have come before in the same order to be trusted
};

/// A sequence that may take guesses.
struct DraftTask {
  Sequence* sequence = nullptr;      // its draft is empty
  const Sampler* sampler = nullptr;  // of its choice
  int num_wanted = 0;                // guesses at most
};

/// Belongs to one thread.
class Drafter {
 public:
  Drafter() = default;
  Drafter(const Drafter&) = delete;
  Drafter& operator=(const Drafter&) = delete;
  virtual ~Drafter() = default;

  /// Fills the sequences' drafts.
  virtual void propose(std::span<const DraftTask> tasks) = 0;
  /// A sequence is about to go.
  virtual void forget(const Sequence& sequence) = 0;
};

/// Guesses that what followed the last few tokens before will follow again (prompt lookup). Free
/// where nothing repeats, and right for long stretches where text is copied.
class NgramDrafter final : public Drafter {
 public:
  explicit NgramDrafter(int ngram_tokens) : ngram_tokens_(static_cast<size_t>(ngram_tokens)) {}
  void propose(std::span<const DraftTask> tasks) override;
  void forget(const Sequence&) override {}

 private:
  const size_t ngram_tokens_;
};

/// Null if nothing is to be guessed.
inline std::unique_ptr<Drafter> repeated_text_drafter(const SpeculationOptions& options) {
  if (options.draft_max == 0) return nullptr;
  return std::make_unique<NgramDrafter>(options.ngram_tokens);
}

}  // namespace pelago::serve
