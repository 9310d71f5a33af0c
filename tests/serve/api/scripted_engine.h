// An Engine without a model: it answers what the test tells it to, and remembers what it was asked.
// Tokens are bytes; four special tokens stand behind them.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "data/bpe/tokenizer_spec.h"
#include "serve/engine.h"

namespace pelago::serve {

inline constexpr int32_t kEndOfText = 256, kImStart = 257, kImEnd = 258, kToolCall = 259;

inline data::Tokenizer scripted_tokenizer() {
  data::TokenizerSpec spec;
  for (int byte = 0; byte < 256; ++byte) spec.token_bytes.emplace_back(1, static_cast<char>(byte));
  spec.added = {{.id = kEndOfText, .content = "<|endoftext|>"},
                {.id = kImStart, .content = "<|im_start|>"},
                {.id = kImEnd, .content = "<|im_end|>"},
                {.id = kToolCall, .content = "<tool_call>", .special = false}};
  spec.token_bytes.resize(260);
  return data::Tokenizer::from_spec(std::move(spec));
}

class ScriptedEngine final : public Engine {
 public:
  struct Script {
    std::vector<std::string> pieces = {"Hel", "lo"};  // of every answer
    Finish finish = Finish::kStop;
    std::string error = {};
    bool waits = false;  // after the first piece, until it is cancelled
    int64_t context = 1000;
    bool is_full = false, is_ready = true;
  };

  explicit ScriptedEngine(Script script) : script_(std::move(script)) {
    thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  }
  ~ScriptedEngine() override {
    thread_.request_stop();
    changed_.notify_all();
  }

  Result<RequestId> submit(GenerateRequest request,
                           std::function<void(const Piece&)> on_piece) override {
    const std::lock_guard lock(mutex_);
    if (script_.is_full) return Error{ErrorCode::kNoSpace, "too many requests wait"};
    asked_.push_back(request);
    queue_.push_back({++last_id_, std::move(request), std::move(on_piece)});
    changed_.notify_all();
    return last_id_;
  }
  void cancel(RequestId id) override {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(id);
    changed_.notify_all();
  }
  Result<std::vector<std::vector<float>>> embed(
      const std::vector<std::vector<int32_t>>& inputs) override {
    std::vector<std::vector<float>> vectors;
    for (const auto& input : inputs)
      vectors.push_back({0.6F, -0.8F, static_cast<float>(input.size())});
    return vectors;
  }
  EngineStats stats() const override { return {.num_running = 3, .completion_tokens = 77}; }
  int64_t context_length() const override { return script_.context; }
  bool is_ready() const override { return script_.is_ready; }

  /// The last request; waits until there is one.
  GenerateRequest asked() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !asked_.empty(); });
    return asked_.back();
  }
  size_t num_asked() {
    const std::lock_guard lock(mutex_);
    return asked_.size();
  }
  /// Waits until some request was cancelled.
  void wait_for_cancel() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !cancelled_.empty(); });
  }

 private:
  struct Queued {
    RequestId id;
    GenerateRequest request;
    std::function<void(const Piece&)> on_piece;
  };

  void run(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, stop, [this] { return !queue_.empty(); });
      if (queue_.empty()) return;
      const Queued queued = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      answer(queued, stop);
    }
  }

  void answer(const Queued& queued, const std::stop_token& stop) {
    for (int choice = 0; choice < queued.request.num_choices; ++choice) {
      for (size_t i = 0; i < script_.pieces.size(); ++i) {
        Piece piece;
        piece.choice = choice;
        piece.text = script_.pieces[i];
        for (const char c : piece.text) {
          piece.tokens.push_back(static_cast<unsigned char>(c));
          if (queued.request.num_logprobs >= 0) {
            piece.logprobs.push_back(
                {.token = piece.tokens.back(), .logprob = -0.5F, .top = {{65, -0.5F}}});
          }
        }
        queued.on_piece(piece);
        if (!script_.waits) continue;
        std::unique_lock lock(mutex_);
        changed_.wait(lock, stop, [&] {
          return std::find(cancelled_.begin(), cancelled_.end(), queued.id) != cancelled_.end();
        });
      }
      Piece last;
      last.choice = choice;
      last.finish = script_.waits ? Finish::kCancelled : script_.finish;
      last.error = script_.error;
      last.is_last = choice + 1 == queued.request.num_choices;
      last.prompt_tokens = static_cast<int64_t>(queued.request.prompt.size());
      last.cached_tokens = 2;
      last.completion_tokens = 5;
      queued.on_piece(last);
    }
  }

  const Script script_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable_any changed_;
  std::deque<Queued> queue_;
  std::vector<GenerateRequest> asked_;
  std::vector<RequestId> cancelled_;
  RequestId last_id_ = 0;
  std::jthread thread_;  // last: it uses everything above
};

}  // namespace pelago::serve
