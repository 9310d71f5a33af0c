// One model, many requests, one thread: the engine's work without the thread. Each step asks the
// scheduler what to compute, has the runner compute it, draws the tokens and hands out the text.
// All that happens to a request depends on the calls and their order only, so that tests can drive
// it step by step; LocalEngine puts a thread and a door around it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/rng.h"
#include "data/tokenizer.h"
#include "serve/engine.h"
#include "serve/pages/page_pool.h"
#include "serve/runner/model_runner.h"
#include "serve/sampling/sampler.h"
#include "serve/scheduler/scheduler.h"
#include "serve/speculation/drafter.h"
#include "serve/split/prompt_reader.h"
#include "serve/text/text_stream.h"

namespace pelago::serve {

/// How one engine shares its chip among requests.
struct BatchOptions {
  SchedulerLimits scheduler = {};
  SpeculationOptions speculation = {};
  int64_t context_tokens_max = 0;  // of one answer with its prompt; 0: what model and pages allow
  int64_t waiting_max = 256;       // requests in the queue; more are told to come later
  int64_t waiting_tokens_max = 4'000'000;  // of their prompts: 16 MB
  std::vector<int32_t> end_tokens = {};    // the model's own end-of-text tokens
  uint64_t seed = 1;                       // of requests that bring none
};

/// Belongs to one thread.
class BatchEngine {
 public:
  using OnPiece = std::function<void(const Piece&)>;

  /// runner and tokenizer outlive the engine.
  BatchEngine(ModelRunner& runner, const data::Tokenizer& tokenizer, const BatchOptions& options);
  /// With a drafter of its own in place of the lookup of repeated tokens.
  BatchEngine(ModelRunner& runner,
              const data::Tokenizer& tokenizer,
              const BatchOptions& options,
              std::unique_ptr<Drafter> drafter);
  ~BatchEngine();

  /// Has prompts read elsewhere from now on, where reader takes them. wake: called on any thread
  /// when step() has something to do because of it.
  void read_with(std::unique_ptr<PromptReader> reader, std::function<void()> wake);
  /// No wake is called after it; what was to be read elsewhere is never read.
  void stop_reading();
  /// Whether a request can ever be served; any thread may ask. kRefused, with one line that says
  /// why.
  Status check(const GenerateRequest& request) const;
  /// Queues a request that check() found good.
  void submit(RequestId id, GenerateRequest request, OnPiece on_piece);
  void cancel(RequestId id);
  /// One forward pass. False if there was nothing to do.
  bool step();
  /// Ends every request, with an error or as cancelled.
  void fail_all(const std::string& error) { end_all(Finish::kError, error); }
  void cancel_all() { end_all(Finish::kCancelled, ""); }
  Result<std::vector<float>> embed(const std::vector<int32_t>& input);

  int64_t context_length() const { return context_length_; }
  int64_t num_waiting_tokens() const;
  EngineStats stats() const;

 private:
  struct Choice;
  struct Request;
  void propose_drafts();
  void take_read_prompts();
  void start(Sequence& sequence);
  void read_step(const StepPlan& plan, std::span<const float> logits);
  void draw_tokens(Sequence& sequence, std::span<const float> logits);
  void fork_choices(Request& request, Sequence& sequence, std::span<const float> logits);
  /// Draws the next token. False if the choice has ended by it; the request may be gone then.
  bool accept(Request& request, Choice& choice, Sequence& sequence, std::span<const float> row);
  void finish(Request& request, Choice& choice, Finish reason, const std::string& error);
  void end_all(Finish reason, const std::string& error);
  void end_all_choices(Request& request, Finish reason, const std::string& error);
  void send(Request& request, Choice& choice);
  Request& request_of(const Sequence& sequence);

  ModelRunner& runner_;
  const data::Tokenizer& tokenizer_;
  const BatchOptions options_;
  const int64_t context_length_;
  PagePool pool_;
  Scheduler scheduler_;
  const std::unique_ptr<Drafter> drafter_;  // null: nothing is guessed
  std::unique_ptr<PromptReader> reader_;    // null: all prompts are read here
  std::map<RequestId, std::unique_ptr<Request>> requests_;
  SamplerScratch scratch_;
  std::vector<SequenceChunk> chunks_;
  EngineStats totals_;
};

}  // namespace pelago::serve
