// The engine on the chips at hand: a BatchEngine with a thread of its own, and a door that any
// thread may knock at. What comes in waits in an inbox between two steps; a full queue says so at
// the door, so that memory does not grow with the number of those who ask.
#pragma once

#include <condition_variable>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "data/tokenizer.h"
#include "serve/engine.h"
#include "serve/local/batch_engine.h"
#include "serve/runner/model_runner.h"

namespace pelago::serve {

class LocalEngine final : public Engine {
 public:
  LocalEngine(std::unique_ptr<ModelRunner> runner,
              data::Tokenizer tokenizer,
              const BatchOptions& options);
  LocalEngine(std::unique_ptr<ModelRunner> runner,
              data::Tokenizer tokenizer,
              const BatchOptions& options,
              std::unique_ptr<Drafter> drafter,
              std::unique_ptr<PromptReader> reader = nullptr);
  /// Ends what is under way as cancelled.
  ~LocalEngine() override;

  Result<RequestId> submit(GenerateRequest request,
                           std::function<void(const Piece&)> on_piece) override;
  void cancel(RequestId id) override;
  Result<std::vector<std::vector<float>>> embed(
      const std::vector<std::vector<int32_t>>& inputs) override;
  EngineStats stats() const override;
  int64_t context_length() const override { return engine_.context_length(); }
  bool is_ready() const override;

 private:
  struct Submission {
    RequestId id;
    GenerateRequest request;
    std::function<void(const Piece&)> on_piece;
  };
  struct Cancellation {
    RequestId id;
  };
  struct Embedding {
    std::vector<int32_t> input;
    std::promise<Result<std::vector<float>>> answer;
  };
  struct Reminder {};  // a prompt was read elsewhere
  using Letter = std::variant<Submission, Cancellation, Embedding, Reminder>;

  void run(const std::stop_token& stop);
  void serve(const std::stop_token& stop);
  void remind();
  std::vector<Letter> take_letters(const std::stop_token& stop, bool may_wait);
  void open_letter(Letter& letter);
  void close(const std::string& reason);

  const std::unique_ptr<ModelRunner> runner_;
  const data::Tokenizer tokenizer_;
  const BatchOptions options_;
  BatchEngine engine_;  // the thread's, but for what any thread may ask

  mutable std::mutex inbox_mutex_;  // guards all below
  std::condition_variable_any arrived_;
  std::vector<Letter> inbox_;
  int64_t num_new_ = 0, num_new_tokens_ = 0;  // requests in the inbox, and their prompts
  int64_t num_waiting_tokens_ = 0;            // in the engine's queue after the last step
  EngineStats stats_;                         // after the last step
  RequestId next_id_ = 1;
  uint64_t num_refused_ = 0;
  std::string closed_because_;  // empty: open

  std::jthread thread_;  // last: it uses everything above
};

/// How open_engine() finds its memory and threads.
struct EngineOptions {
  /// "cpu"; "emulated:CHIP": the processors at that chip's pace and with its memory; any other runs
  /// the trainer's transformer on that chip.
  std::string device = "cpu";
  std::string dtype = "";          // of weights: f32, bf16, int8, int4; empty: as stored
  int64_t group_size = 64;         // values a scale, where weights are quantised when opened
  std::string kv_dtype = "bf16";   // of keys and values: f32, bf16, int8
  double kv_memory_gb = 1.0;       // for pages; 1 GB holds 46,000 tokens of a 1B model
  int64_t page_tokens = 32;        // smaller: more of a prefix is found; larger: fewer lookups
  int num_threads = 0;             // of a pass, bound to cores of their own; 0: one a core
  int64_t context_tokens_max = 0;  // 0: what the model was made for
  /// sequences_max 0: 16 on a CPU, where products of more rows take longer by as much as they do
  /// more, and 64 elsewhere.
  SchedulerLimits scheduler = {.sequences_max = 0};
  SpeculationOptions speculation = {};
  std::filesystem::path draft_folder = {};  // a small model that guesses; empty: repeated text only
  int64_t waiting_max = 256;                // requests in the queue
  std::optional<uint64_t> seed = {};        // of requests that bring none; absent: by chance
  /// Where serve_prompts() of another process meets this engine, an empty folder that both see;
  /// empty: all prompts are read here.
  std::filesystem::path prefill_link = {};
  double prefill_local_share = 0;  // of prompt tokens read here all the same: ServingPlan has it
  /// Of a process that the engine starts to read its prompts; empty: none. Not with prefill_link.
  std::string prefill_device = "";
  /// A file in memory (serve/runner/shared_weights.h) through which processes on processors have
  /// one packed copy of the weights; empty: each its own.
  std::string shared_weights = "";
  double slowdown = 1;  // of emulated chips: so many times slower than the catalogue says
  /// `scheduler` with sequences_max as it is for this device.
  SchedulerLimits scheduler_limits() const;
  void validate() const;  // throws Failure naming field, value and what is allowed
};

/// An engine on a Hugging Face folder, with its tokenizer. Throws Failure naming file or option.
std::unique_ptr<Engine> open_engine(const std::filesystem::path& folder,
                                    const EngineOptions& options);

/// The other end of options.prefill_link: reads prompts for that engine, whose folder, dtype,
/// kv_dtype and page_tokens must be these. Waits for it; returns when stopped (empty) or when it
/// has gone (why). on_open: called before that, once the model is open. Throws as open_engine()
/// does.
std::string serve_prompts(const std::filesystem::path& folder,
                          const EngineOptions& options,
                          const std::stop_token& stop,
                          const std::function<void()>& on_open = {});

}  // namespace pelago::serve
