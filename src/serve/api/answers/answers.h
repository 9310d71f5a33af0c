// One answer in the making: pieces of the engine in, JSON out, whole or as a stream of events.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "serve/api/answers/tool_calls.h"
#include "serve/api/requests/requests.h"
#include "serve/api/served_model.h"
#include "serve/http/messages.h"

namespace pelago::serve {

/// What an answer tells when it is over, for metrics and limits.
struct AnswerReport {
  int status = 200;
  bool is_cancelled = false;  // the client went, or read too slowly
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  double first_token_s = 0;  // since the request came; 0: none came
  double token_s = 0;        // a token after the first, mean; 0: fewer than two
  double total_s = 0;
};

/// shared: owners are the engine's callbacks and the reply's on_gone().
class ApiAnswer : public std::enable_shared_from_this<ApiAnswer> {
 public:
  struct Context {
    ServedModelPtr model;
    HttpReplyPtr reply;
    std::string id;                                   // "chatcmpl-..."
    int64_t created_s = 0;                            // since 1970
    double start_s = 0;                               // steady_now_s() when the request came
    std::function<void(const AnswerReport&)> on_end;  // once
  };
  ApiAnswer(ApiRequest request, Context context);

  /// Hands the request to the engine. Throws ApiError if it does not take it.
  void start();

 private:
  struct Choice {
    std::string text, finish_reason;
    std::vector<ToolCall> calls;
    std::vector<TokenLogprob> logprobs;
    std::unique_ptr<ToolCatcher> catcher;
    bool has_begun = false;
  };
  // All of these with the mutex held.
  void take(size_t prompt_idx, const Piece& piece);
  void add(int choice_idx, const Piece& piece, std::string& events);
  void end_choice(int choice_idx, const Piece& piece, std::string& events);
  void end_prompt(const Piece& piece, std::string& events);
  void finish();
  void fail_with(int status, const std::string& message);
  void report(int status, bool is_cancelled);

  std::string chunk(int choice_idx,
                    const std::string& delta,
                    const std::string& logprobs,
                    const std::string& finish_reason) const;
  std::string whole_answer() const;
  std::string message_of(int choice_idx) const;
  std::string calls_json(int choice_idx, bool with_index) const;
  std::string logprobs_json(const std::vector<TokenLogprob>& logprobs, size_t text_offset) const;
  std::string usage_json() const;
  std::string head(std::string_view object) const;
  void cancel_all();

  ApiRequest request_;
  Context context_;
  std::mutex mutex_;  // guards what follows
  bool has_started_ = false, is_over_ = false;
  std::vector<std::pair<size_t, Piece>> early_;  // came before start() was through
  std::vector<RequestId> ids_;
  std::vector<Choice> choices_;
  size_t num_left_ = 0;  // prompts
  AnswerReport report_;
  double first_token_at_s_ = 0, last_token_at_s_ = 0;
};

}  // namespace pelago::serve
