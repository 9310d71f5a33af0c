#include "serve/api/answers/answers.h"

#include <fmt/format.h>

#include "base/clock.h"
#include "serve/api/api_error.h"

namespace pelago::serve {

namespace {

std::string event(const std::string& json) { return "data: " + json + "\n\n"; }

// Nine letters and digits: what Mistral's templates want of a call's id.
std::string call_id(const std::string& answer_id, int choice_idx, size_t call_idx) {
  uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char c : fmt::format("{}/{}/{}", answer_id, choice_idx, call_idx)) {
    hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3ULL;
  }
  std::string id;
  for (int i = 0; i < 9; ++i, hash /= 36) id += "0123456789abcdefghijklmnopqrstuvwxyz"[hash % 36];
  return id;
}

std::string quoted_or_null(const std::string& text) {
  return text.empty() ? "null" : json_quoted(text);
}

// JSON has no infinity; -9999 is what OpenAI's API says for "never".
double shown_logprob(float logprob) { return logprob > -9999.0F ? logprob : -9999.0; }

std::string_view finish_name(Finish finish) {
  return finish == Finish::kLength ? "length" : "stop";
}

}  // namespace

ApiAnswer::ApiAnswer(ApiRequest request, Context context)
    : request_(std::move(request)), context_(std::move(context)) {
  size_t num_choices = 0;
  for (const GenerateRequest& prompt : request_.prompts) {
    num_choices += static_cast<size_t>(prompt.num_choices);
    report_.prompt_tokens += static_cast<int64_t>(prompt.prompt.size());
  }
  choices_.resize(num_choices);
  num_left_ = request_.prompts.size();
  for (Choice& choice : choices_) {
    if (request_.has_tools && request_.forced_tool.empty()) {
      choice.catcher = std::make_unique<ToolCatcher>(request_.tool_names);
    }
  }
}

void ApiAnswer::start() {
  const auto self = shared_from_this();
  for (size_t i = 0; i < request_.prompts.size(); ++i) {
    auto id = context_.model->engine->submit(std::move(request_.prompts[i]),
                                             [self, i](const Piece& piece) {
                                               const std::lock_guard lock(self->mutex_);
                                               if (self->is_over_) return;
                                               if (self->has_started_) {
                                                 self->take(i, piece);
                                               } else {
                                                 self->early_.emplace_back(i, piece);
                                               }
                                             });
    const std::lock_guard lock(mutex_);
    if (id) {
      ids_.push_back(*id);
      continue;
    }
    is_over_ = true;
    cancel_all();
    report_.status = id.error().code == ErrorCode::kNoSpace   ? 429
                     : id.error().code == ErrorCode::kRefused ? 400
                                                              : 503;
    ApiError error(report_.status, id.error().message);
    if (report_.status == 429) error.code = "overloaded";
    if (report_.status != 400) error.retry_after_s = 1;
    throw error;
  }
  // No lock is held: on_gone() may call back at once.
  context_.reply->on_gone([self] {
    const std::lock_guard lock(self->mutex_);
    self->report(499, true);
    self->cancel_all();
  });
  const std::lock_guard lock(mutex_);
  if (request_.is_stream) {
    context_.reply->begin(
        {.content_type = "text/event-stream",
         .headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}});
  }
  has_started_ = true;
  for (const auto& [prompt_idx, piece] : early_) take(prompt_idx, piece);
  early_.clear();
}

void ApiAnswer::cancel_all() {
  for (const RequestId id : ids_) context_.model->engine->cancel(id);
}

void ApiAnswer::take(size_t prompt_idx, const Piece& piece) {
  if (is_over_) return;
  if (piece.finish == Finish::kError || piece.finish == Finish::kCancelled) {
    return fail_with(piece.finish == Finish::kError ? 500 : 503,
                     piece.error.empty() ? "the answer was broken off" : piece.error);
  }
  const int choice_idx =
      static_cast<int>(prompt_idx) * static_cast<int>(choices_.size() / request_.prompts.size()) +
      piece.choice;
  if (!piece.tokens.empty()) {
    last_token_at_s_ = steady_now_s();
    if (first_token_at_s_ == 0) first_token_at_s_ = last_token_at_s_;
  }
  std::string events;
  add(choice_idx, piece, events);
  if (piece.finish != Finish::kNotYet) end_choice(choice_idx, piece, events);
  if (piece.is_last) end_prompt(piece, events);
  if (!request_.is_stream) {
    if (num_left_ == 0) finish();
    return;
  }
  if (!events.empty() && !context_.reply->write(events)) {
    report(499, true);
    cancel_all();
    context_.reply->cut();
    return;
  }
  if (num_left_ == 0) finish();
}

void ApiAnswer::add(int choice_idx, const Piece& piece, std::string& events) {
  Choice& choice = choices_[static_cast<size_t>(choice_idx)];
  std::string text = choice.catcher ? choice.catcher->add(piece.text) : piece.text;
  const size_t text_offset = choice.text.size();
  if (request_.echoes && !choice.has_begun) {
    const size_t prompt_idx =
        static_cast<size_t>(choice_idx) / (choices_.size() / request_.prompts.size());
    text = request_.prompt_texts[prompt_idx] + text;
  }
  choice.text += text;
  if (!request_.is_stream) {
    choice.has_begun = true;
    choice.logprobs.insert(choice.logprobs.end(), piece.logprobs.begin(), piece.logprobs.end());
    return;
  }
  if (request_.is_chat && !choice.has_begun) {
    events += chunk(choice_idx, R"("role":"assistant","content":"")", "", "");
    if (!request_.forced_tool.empty()) {
      events += chunk(
          choice_idx,
          fmt::format(
              R"("tool_calls":[{{"index":0,"id":"{}","type":"function","function":{{"name":{},"arguments":""}}}}])",
              call_id(context_.id, choice_idx, 0),
              json_quoted(request_.forced_tool)),
          "",
          "");
    }
  }
  choice.has_begun = true;
  const std::string logprobs =
      piece.logprobs.empty() ? "" : logprobs_json(piece.logprobs, text_offset);
  if (text.empty() && logprobs.empty()) return;
  std::string delta = json_quoted(text);
  if (!request_.forced_tool.empty()) {
    delta = R"("tool_calls":[{"index":0,"function":{"arguments":)" + delta + "}}]";
  } else if (request_.is_chat) {
    delta = R"("content":)" + delta;
  }
  events += chunk(choice_idx, delta, logprobs, "");
}

void ApiAnswer::end_choice(int choice_idx, const Piece& piece, std::string& events) {
  Choice& choice = choices_[static_cast<size_t>(choice_idx)];
  choice.finish_reason = finish_name(piece.finish);
  if (!request_.forced_tool.empty()) {
    choice.calls = {{.name = request_.forced_tool, .arguments = choice.text}};
    if (piece.finish == Finish::kStop) choice.finish_reason = "stop";
  } else if (choice.catcher) {
    ToolCatcher::Rest rest = choice.catcher->finish();
    choice.text += rest.text;
    choice.calls = std::move(rest.calls);
    if (!choice.calls.empty() && piece.finish == Finish::kStop) choice.finish_reason = "tool_calls";
    if (request_.is_stream && !rest.text.empty()) {
      events += chunk(choice_idx, R"("content":)" + json_quoted(rest.text), "", "");
    }
    if (request_.is_stream && !choice.calls.empty()) {
      events += chunk(choice_idx, R"("tool_calls":)" + calls_json(choice_idx, true), "", "");
    }
  }
  if (request_.is_stream) {
    events += chunk(choice_idx, request_.is_chat ? "" : R"("")", "", choice.finish_reason);
    choice.text.clear();
  }
}

void ApiAnswer::end_prompt(const Piece& piece, std::string& events) {
  report_.cached_tokens += piece.cached_tokens;
  report_.completion_tokens += piece.completion_tokens;
  if (--num_left_ > 0 || !request_.is_stream) return;
  if (request_.includes_usage) {
    events += event(head(request_.is_chat ? "chat.completion.chunk" : "text_completion") +
                    R"(,"choices":[],"usage":)" + usage_json() + "}");
  }
  events += "data: [DONE]\n\n";
}

void ApiAnswer::finish() {
  const auto reply = context_.reply;
  report(200, false);
  if (request_.is_stream) {
    reply->end();
  } else {
    reply->send({.body = whole_answer()});
  }
}

void ApiAnswer::fail_with(int status, const std::string& message) {
  report(status, false);
  cancel_all();
  if (!request_.is_stream) {
    ApiError error(status, message);
    if (status == 503) error.retry_after_s = 1;
    return context_.reply->send(error_response(error));
  }
  context_.reply->write(event(error_body(status, message)));
  context_.reply->end();
}

// Once.
void ApiAnswer::report(int status, bool is_cancelled) {
  if (is_over_) return;
  is_over_ = true;
  report_.status = status;
  report_.is_cancelled = is_cancelled;
  report_.total_s = steady_now_s() - context_.start_s;
  if (first_token_at_s_ > 0) report_.first_token_s = first_token_at_s_ - context_.start_s;
  if (report_.completion_tokens > 1) {
    report_.token_s =
        (last_token_at_s_ - first_token_at_s_) / static_cast<double>(report_.completion_tokens - 1);
  }
  if (context_.on_end) context_.on_end(report_);
  context_.on_end = nullptr;
}

// ---- JSON ----

std::string ApiAnswer::head(std::string_view object) const {
  return fmt::format(R"({{"id":"{}","object":"{}","created":{},"model":{})",
                     context_.id,
                     object,
                     context_.created_s,
                     json_quoted(context_.model->id));
}

std::string ApiAnswer::chunk(int choice_idx,
                             const std::string& delta,
                             const std::string& logprobs,
                             const std::string& finish_reason) const {
  const std::string tail = fmt::format(R"("logprobs":{},"finish_reason":{}}}])",
                                       logprobs.empty() ? "null" : logprobs,
                                       quoted_or_null(finish_reason));
  const std::string usage = request_.includes_usage ? R"(,"usage":null})" : "}";
  if (request_.is_chat) {
    return event(head("chat.completion.chunk") +
                 fmt::format(R"(,"choices":[{{"index":{},"delta":{{{}}},)", choice_idx, delta) +
                 tail + usage);
  }
  return event(head("text_completion") +
               fmt::format(R"(,"choices":[{{"index":{},"text":{},)", choice_idx, delta) + tail +
               usage);
}

std::string ApiAnswer::usage_json() const {
  return fmt::format(
      R"({{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{},"prompt_tokens_details":{{"cached_tokens":{}}}}})",
      report_.prompt_tokens,
      report_.completion_tokens,
      report_.prompt_tokens + report_.completion_tokens,
      report_.cached_tokens);
}

std::string ApiAnswer::calls_json(int choice_idx, bool with_index) const {
  const Choice& choice = choices_[static_cast<size_t>(choice_idx)];
  std::string out = "[";
  for (size_t i = 0; i < choice.calls.size(); ++i) {
    if (i > 0) out += ',';
    out +=
        fmt::format(R"({{{}"id":"{}","type":"function","function":{{"name":{},"arguments":{}}}}})",
                    with_index ? fmt::format(R"("index":{},)", i) : "",
                    call_id(context_.id, choice_idx, i),
                    json_quoted(choice.calls[i].name),
                    json_quoted(choice.calls[i].arguments));
  }
  return out + "]";
}

std::string ApiAnswer::message_of(int choice_idx) const {
  const Choice& choice = choices_[static_cast<size_t>(choice_idx)];
  const bool is_call = !choice.calls.empty();
  const bool has_text = request_.forced_tool.empty() && (!is_call || !choice.text.empty());
  return fmt::format(R"({{"role":"assistant","content":{},"refusal":null{}}})",
                     has_text ? json_quoted(choice.text) : "null",
                     is_call ? R"(,"tool_calls":)" + calls_json(choice_idx, false) : "");
}

std::string ApiAnswer::whole_answer() const {
  std::string choices;
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Choice& choice = choices_[i];
    const int choice_idx = static_cast<int>(i);
    choices += fmt::format(R"({}{{"index":{},{}:{},"logprobs":{},"finish_reason":{}}})",
                           i > 0 ? "," : "",
                           i,
                           request_.is_chat ? R"("message")" : R"("text")",
                           request_.is_chat ? message_of(choice_idx) : json_quoted(choice.text),
                           choice.logprobs.empty() ? "null" : logprobs_json(choice.logprobs, 0),
                           quoted_or_null(choice.finish_reason));
  }
  return head(request_.is_chat ? "chat.completion" : "text_completion") + R"(,"choices":[)" +
         choices + R"(],"usage":)" + usage_json() + "}";
}

std::string ApiAnswer::logprobs_json(const std::vector<TokenLogprob>& logprobs,
                                     size_t text_offset) const {
  const ChatText& text = context_.model->text;
  if (!request_.is_chat) {
    std::string tokens, values, tops, offsets;
    for (const TokenLogprob& one : logprobs) {
      const std::string_view comma = tokens.empty() ? "" : ",";
      const std::string token = text.token_text(one.token);
      tokens += fmt::format("{}{}", comma, json_quoted(token));
      values += fmt::format("{}{}", comma, shown_logprob(one.logprob));
      offsets += fmt::format("{}{}", comma, text_offset);
      text_offset += token.size();
      std::string top;
      for (const auto& [other, logprob] : one.top) {
        top += fmt::format("{}{}:{}",
                           top.empty() ? "" : ",",
                           json_quoted(text.token_text(other)),
                           shown_logprob(logprob));
      }
      tops += fmt::format("{}{{{}}}", comma, top);
    }
    return fmt::format(
        R"({{"tokens":[{}],"token_logprobs":[{}],"top_logprobs":[{}],"text_offset":[{}]}})",
        tokens,
        values,
        tops,
        offsets);
  }
  const auto entry = [&](int32_t id, float logprob) {
    const std::string token = text.token_text(id);
    std::string bytes;
    for (const char c : token)
      bytes += fmt::format("{}{}", bytes.empty() ? "" : ",", static_cast<unsigned char>(c));
    return fmt::format(R"("token":{},"logprob":{},"bytes":[{}])",
                       json_quoted(token),
                       shown_logprob(logprob),
                       bytes);
  };
  std::string content;
  for (const TokenLogprob& one : logprobs) {
    std::string top;
    for (const auto& [other, logprob] : one.top) {
      top += fmt::format("{}{{{}}}", top.empty() ? "" : ",", entry(other, logprob));
    }
    content += fmt::format(R"({}{{{},"top_logprobs":[{}]}})",
                           content.empty() ? "" : ",",
                           entry(one.token, one.logprob),
                           top);
  }
  return fmt::format(R"({{"content":[{}],"refusal":null}})", content);
}

}  // namespace pelago::serve
