// What answers requests, as the API sees it: token ids in, text and tokens out, piece by piece. One
// engine on the chips at hand is an Engine; so is a router in front of many workers, and so is the
// scripted one in the API's tests. Nothing here knows HTTP, nothing behind it knows JSON.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace pelago::serve {

/// Says which tokens may follow: structured output (serve/grammar/). One object a choice; forked
/// where a request has several.
class TokenConstraint;

/// How the next token is drawn. The defaults draw from the model's own distribution.
struct Sampling {
  float temperature = 1;                // 0: always the likeliest token
  int top_k = 0;                        // 0: all tokens
  float top_p = 1;                      // of the mass, (0, 1]
  float min_p = 0;                      // of the likeliest token's probability, [0, 1]
  float repetition_penalty = 1;         // > 0; divides logits of tokens seen (CTRL, 2019)
  float presence_penalty = 0;           // [-2, 2]; off the logit of each token generated
  float frequency_penalty = 0;          // [-2, 2]; times how often it was generated
  std::map<int32_t, float> logit_bias;  // by token, [-100, 100]
  std::optional<uint64_t> seed;         // the same seed and request: the same tokens
};

struct GenerateRequest {
  std::vector<int32_t> prompt;  // at least one token
  int64_t max_new_tokens = 16;
  Sampling sampling;
  std::vector<std::string> stop;     // text at which the answer ends, itself left out
  std::vector<int32_t> stop_tokens;  // beside the model's own end-of-text tokens
  bool ignore_end = false;           // goes on past end-of-text, for benchmarks
  int num_choices = 1;               // answers to one prompt, which they share
  int num_logprobs = -1;             // alternatives beside each token; -1: no logprobs
  std::string user;                  // who asks: the queue is fair between users
  std::shared_ptr<const TokenConstraint> constraint;  // null: any text
};

enum class Finish { kNotYet, kStop, kLength, kCancelled, kError };

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;                           // nat, of the model's distribution before sampling
  std::vector<std::pair<int32_t, float>> top;  // the likeliest, best first
};

/// A piece of one choice. The last one of a choice says why it ended; the last one of a request is
/// the last one of its last choice.
struct Piece {
  int choice = 0;
  std::string text;  // whole UTF-8 characters; never part of a stop string
  std::vector<int32_t> tokens;
  std::vector<TokenLogprob> logprobs;  // one a token, if asked for
  Finish finish = Finish::kNotYet;
  std::string error;              // of kError, and of kCancelled by nobody's wish: one line
  bool is_last = false;           // of the request
  int64_t prompt_tokens = 0;      // of the last piece: what was computed and what was not
  int64_t cached_tokens = 0;      // of the prompt, found in the prefix cache
  int64_t completion_tokens = 0;  // of all choices
};

struct EngineStats {
  int64_t num_running = 0, num_waiting = 0;
  int64_t num_pages = 0, num_pages_used = 0, num_pages_cached = 0;
  uint64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;  // since the start
  uint64_t num_finished = 0, num_cancelled = 0, num_refused = 0, num_preempted = 0;
  uint64_t draft_tokens = 0, draft_accepted = 0;      // speculative decoding
  uint64_t num_read_elsewhere = 0;                    // prompts, on a split's prefill side
  int64_t num_prefill_sides = 0, num_prefill_up = 0;  // of a split; those that read prompts now
  uint64_t num_prefill_restarts = 0;                  // starts of such a side but its first
};

/// One of the engines behind a router.
struct WorkerStats {
  size_t worker_idx = 0;
  int64_t pid = 0;
  bool is_ready = false;
  uint64_t num_lost = 0;      // processes in this place that ended unasked
  int64_t num_sequences = 0;  // sent there and not ended
  EngineStats engine;         // of the process that is there now
};

using RequestId = uint64_t;

/// All functions may be called from any thread.
class Engine {
 public:
  Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  virtual ~Engine() = default;

  /// Queues a request. on_piece is called on the engine's thread, must not block, and is called a
  /// last time with is_last set, cancelled or not. kRefused: the request can never be served (its
  /// prompt is longer than the context). kNoSpace: too many wait already; try again later.
  virtual Result<RequestId> submit(GenerateRequest request,
                                   std::function<void(const Piece&)> on_piece) = 0;
  /// Ends a request at once and frees its pages. One that has ended already is no error.
  virtual void cancel(RequestId id) = 0;
  /// The mean of the last hidden states of each input, normed to length 1: [inputs][D].
  virtual Result<std::vector<std::vector<float>>> embed(
      const std::vector<std::vector<int32_t>>& inputs) = 0;
  virtual EngineStats stats() const = 0;
  /// Of a router; else none.
  virtual std::vector<WorkerStats> workers() const { return {}; }
  virtual int64_t context_length() const = 0;  // tokens, prompt and answer together
  /// False once it cannot answer any more (its weights are lost, its worker is dead).
  virtual bool is_ready() const = 0;
};

}  // namespace pelago::serve
