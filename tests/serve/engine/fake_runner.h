// A model of no weights: what follows a text is a hash of the tokens that its pages hold. A page
// that was lost, mixed up, written twice or never copied changes every token after it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/rng.h"
#include "data/bpe/tokenizer_spec.h"
#include "data/tokenizer.h"
#include "serve/local/batch_engine.h"
#include "serve/runner/model_runner.h"

namespace pelago::serve {

/// Logits of what follows these tokens: f32 [V].
inline void hash_logits(uint64_t hash, std::span<float> logits) {
  Rng rng(hash);
  for (float& logit : logits) logit = static_cast<float>(4 * rng.next_uniform());
}
inline uint64_t hash_token(uint64_t hash, int32_t token) {
  return Rng::mix(hash * 31 + static_cast<uint64_t>(token) + 1);
}

class FakeRunner : public ModelRunner {
 public:
  struct Shape {
    int64_t num_pages = 64, page_tokens = 4, vocab_size = 260, context_length = 200;
    int64_t max_batch_tokens = 128;
  };
  explicit FakeRunner(const Shape& shape)
      : shape_(shape), kept_(static_cast<size_t>(shape.num_pages * shape.page_tokens), -1) {}

  RunnerOutput forward(std::span<const SequenceChunk> chunks) override {
    ++num_passes;
    logits_.clear();
    hidden_.clear();
    int64_t num_tokens = 0;
    for (const SequenceChunk& chunk : chunks) num_tokens += run(chunk);
    PELAGO_ASSERT(num_tokens <= shape_.max_batch_tokens, "a pass fits into the buffers");
    num_tokens_computed += num_tokens;
    if (num_passes == fail_at_pass) fail("the chip fell off");
    return {.logits = logits_, .hidden_states = hidden_};
  }
  void copy_page(int32_t from, int32_t to) override {
    for (int64_t idx = 0; idx < shape_.page_tokens; ++idx) {
      kept_[cell(to, idx)] = kept_[cell(from, idx)];
    }
  }
  std::span<std::byte> page(int32_t page_idx) override {
    return std::as_writable_bytes(
        std::span(kept_).subspan(cell(page_idx, 0), static_cast<size_t>(shape_.page_tokens)));
  }
  int64_t num_pages() const override { return shape_.num_pages; }
  int64_t page_tokens() const override { return shape_.page_tokens; }
  int64_t bytes_per_page() const override { return 4 * shape_.page_tokens; }
  int64_t vocab_size() const override { return shape_.vocab_size; }
  int64_t hidden_size() const override { return 3; }
  int64_t context_length() const override { return shape_.context_length; }
  int64_t max_batch_tokens() const override { return shape_.max_batch_tokens; }
  int64_t weight_bytes() const override { return 0; }

  int64_t num_passes = 0, num_tokens_computed = 0;
  int64_t fail_at_pass = -1;

 private:
  size_t cell(int32_t page_idx, int64_t offset) const {
    return static_cast<size_t>(page_idx * shape_.page_tokens + offset);
  }
  int64_t run(const SequenceChunk& chunk) {
    const auto num_new = static_cast<int64_t>(chunk.tokens.size());
    const int64_t end = chunk.first_position + num_new;
    PELAGO_ASSERT(static_cast<int64_t>(chunk.pages.size()) * shape_.page_tokens >= end,
                  "the pages hold the chunk");
    const auto page_of = [&](int64_t position) {
      return chunk.pages[static_cast<size_t>(position / shape_.page_tokens)];
    };
    for (int64_t idx = 0; idx < num_new; ++idx) {
      const int64_t position = chunk.first_position + idx;
      kept_[cell(page_of(position), position % shape_.page_tokens)] =
          chunk.tokens[static_cast<size_t>(idx)];
    }
    uint64_t hash = 0;
    for (int64_t position = 0; position < end; ++position) {
      hash = hash_token(hash, kept_[cell(page_of(position), position % shape_.page_tokens)]);
      const bool is_new = position >= chunk.first_position;
      const bool is_last = position + 1 == end;
      if (is_new && chunk.wanted == Wanted::kHiddenStates) {
        for (int part = 0; part < 3; ++part) {
          hidden_.push_back(static_cast<float>(hash >> (8 * part) & 0xFF));
        }
      }
      if ((is_new && chunk.wanted == Wanted::kAllLogits) ||
          (is_last && chunk.wanted == Wanted::kLastLogits)) {
        logits_.resize(logits_.size() + static_cast<size_t>(shape_.vocab_size));
        hash_logits(hash, std::span(logits_).last(static_cast<size_t>(shape_.vocab_size)));
      }
    }
    return num_new;
  }

  const Shape shape_;
  std::vector<int32_t> kept_;  // [P,S]
  std::vector<float> logits_, hidden_;
};

/// A token for each byte, and <|endoftext|> as token 256.
inline data::Tokenizer byte_tokenizer() {
  data::TokenizerSpec spec;
  for (int byte = 0; byte < 256; ++byte) {
    spec.token_bytes.emplace_back(1, static_cast<char>(byte));
  }
  spec.token_bytes.emplace_back();
  spec.added.push_back({.id = 256, .content = "<|endoftext|>", .special = true});
  return data::Tokenizer::from_spec(std::move(spec));
}

/// What came of one request.
struct Answer {
  struct Choice {
    std::string text;
    std::vector<int32_t> tokens;
    std::vector<TokenLogprob> logprobs;
    Finish finish = Finish::kNotYet;
    std::string error;
  };
  std::map<int, Choice> choices;
  bool is_over = false;
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  int num_pieces = 0;
};

/// Collects pieces; stops the test program's run where the engine breaks its word.
inline std::function<void(const Piece&)> collect(std::shared_ptr<Answer> answer) {
  return [answer](const Piece& piece) {
    PELAGO_ASSERT(!answer->is_over, "nothing comes after the last piece");
    Answer::Choice& choice = answer->choices[piece.choice];
    PELAGO_ASSERT(choice.finish == Finish::kNotYet, "nothing comes after a choice has ended");
    choice.text += piece.text;
    choice.tokens.insert(choice.tokens.end(), piece.tokens.begin(), piece.tokens.end());
    choice.logprobs.insert(choice.logprobs.end(), piece.logprobs.begin(), piece.logprobs.end());
    choice.finish = piece.finish;
    choice.error = piece.error;
    answer->is_over = piece.is_last;
    if (piece.is_last) {
      answer->prompt_tokens = piece.prompt_tokens;
      answer->cached_tokens = piece.cached_tokens;
      answer->completion_tokens = piece.completion_tokens;
    }
    ++answer->num_pieces;
  };
}

/// The tokens that a request must give for one choice, one sequence alone and without pages.
inline std::vector<int32_t> expected_tokens(const GenerateRequest& request,
                                            int choice,
                                            int32_t end_token,
                                            int64_t context_length,
                                            int64_t vocab_size) {
  Sampler sampler(request.sampling,
                  request.prompt,
                  Rng(*request.sampling.seed).fork("choice", static_cast<uint64_t>(choice)));
  SamplerScratch scratch;
  std::vector<float> logits(static_cast<size_t>(vocab_size));
  uint64_t hash = 0;
  for (const int32_t token : request.prompt) hash = hash_token(hash, token);
  std::vector<int32_t> tokens;
  while (true) {
    hash_logits(hash, logits);
    const auto position = static_cast<int64_t>(tokens.size());
    tokens.push_back(*sampler.draw(logits, nullptr, position, scratch));
    sampler.note(tokens.back());
    hash = hash_token(hash, tokens.back());
    const auto num_all = static_cast<int64_t>(request.prompt.size() + tokens.size());
    if (tokens.back() == end_token || position + 1 >= request.max_new_tokens ||
        num_all >= context_length) {
      return tokens;
    }
  }
}

}  // namespace pelago::serve
