#include "serve/local/local_engine.h"

#include <algorithm>
#include <utility>

#include "base/log.h"

namespace pelago::serve {

LocalEngine::LocalEngine(std::unique_ptr<ModelRunner> runner,
                         data::Tokenizer tokenizer,
                         const BatchOptions& options)
    : LocalEngine(std::move(runner),
                  std::move(tokenizer),
                  options,
                  repeated_text_drafter(options.speculation)) {}

LocalEngine::LocalEngine(std::unique_ptr<ModelRunner> runner,
                         data::Tokenizer tokenizer,
                         const BatchOptions& options,
                         std::unique_ptr<Drafter> drafter,
                         std::unique_ptr<PromptReader> reader)
    : runner_(std::move(runner)),
      tokenizer_(std::move(tokenizer)),
      options_(options),
      engine_(*runner_, tokenizer_, options, std::move(drafter)),
      stats_(engine_.stats()) {
  if (reader != nullptr) engine_.read_with(std::move(reader), [this] { remind(); });
  thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
}

LocalEngine::~LocalEngine() {
  thread_.request_stop();
  thread_.join();
  engine_.stop_reading();  // reminders come on another thread until then
}

void LocalEngine::remind() {
  const std::lock_guard lock(inbox_mutex_);
  if (!closed_because_.empty()) return;
  inbox_.emplace_back(Reminder{});
  arrived_.notify_one();
}

Result<RequestId> LocalEngine::submit(GenerateRequest request,
                                      std::function<void(const Piece&)> on_piece) {
  const Status status = engine_.check(request);
  const auto num_prompt = static_cast<int64_t>(request.prompt.size());
  const std::lock_guard lock(inbox_mutex_);
  if (!closed_because_.empty()) return Error{ErrorCode::kUnavailable, closed_because_};
  if (!status) {
    ++num_refused_;
    return status.error();
  }
  const int64_t num_waiting = stats_.num_waiting + num_new_;
  const int64_t num_tokens = num_waiting_tokens_ + num_new_tokens_;
  if (num_waiting >= options_.waiting_max ||
      num_tokens + num_prompt > options_.waiting_tokens_max) {
    ++num_refused_;
    return Error{
        ErrorCode::kNoSpace,
        fmt::format(
            "{} requests with {} tokens wait already: try again later", num_waiting, num_tokens)};
  }
  const RequestId id = next_id_++;
  ++num_new_;
  num_new_tokens_ += num_prompt;
  inbox_.emplace_back(Submission{id, std::move(request), std::move(on_piece)});
  arrived_.notify_one();
  return id;
}

void LocalEngine::cancel(RequestId id) {
  const std::lock_guard lock(inbox_mutex_);
  if (!closed_because_.empty()) return;
  inbox_.emplace_back(Cancellation{id});
  arrived_.notify_one();
}

Result<std::vector<std::vector<float>>> LocalEngine::embed(
    const std::vector<std::vector<int32_t>>& inputs) {
  std::vector<std::future<Result<std::vector<float>>>> answers;
  {
    const std::lock_guard lock(inbox_mutex_);
    if (!closed_because_.empty()) return Error{ErrorCode::kUnavailable, closed_because_};
    for (const std::vector<int32_t>& input : inputs) {
      Embedding embedding{input, {}};
      answers.push_back(embedding.answer.get_future());
      inbox_.emplace_back(std::move(embedding));
    }
    arrived_.notify_one();
  }
  std::vector<std::vector<float>> embeddings;
  std::optional<Error> error;
  for (auto& answer : answers) {
    Result<std::vector<float>> result = answer.get();
    if (result) {
      embeddings.push_back(std::move(*result));
    } else if (!error) {
      error = result.error();
    }
  }
  if (error) return *error;
  return embeddings;
}

EngineStats LocalEngine::stats() const {
  const std::lock_guard lock(inbox_mutex_);
  EngineStats stats = stats_;
  stats.num_waiting += num_new_;
  stats.num_refused = num_refused_;
  return stats;
}

bool LocalEngine::is_ready() const {
  const std::lock_guard lock(inbox_mutex_);
  return closed_because_.empty();
}

void LocalEngine::run(const std::stop_token& stop) {
  try {
    serve(stop);
    close("the engine is closed");
  } catch (const std::exception& error) {
    log_error("engine lost error=\"{}\"", error.what());
    close(fmt::format("the engine was lost: {}", error.what()));
    engine_.fail_all(fmt::format("the engine was lost: {}", error.what()));
  }
}

void LocalEngine::serve(const std::stop_token& stop) {
  bool has_worked = false;
  while (!stop.stop_requested()) {
    for (Letter& letter : take_letters(stop, /*may_wait=*/!has_worked)) open_letter(letter);
    has_worked = engine_.step();
  }
  engine_.cancel_all();
}

std::vector<LocalEngine::Letter> LocalEngine::take_letters(const std::stop_token& stop,
                                                           bool may_wait) {
  std::unique_lock lock(inbox_mutex_);
  stats_ = engine_.stats();
  num_waiting_tokens_ = engine_.num_waiting_tokens();
  if (may_wait) arrived_.wait(lock, stop, [&] { return !inbox_.empty(); });
  // Those taken count as waiting until the next step has been counted.
  stats_.num_waiting += std::exchange(num_new_, 0);
  num_waiting_tokens_ += std::exchange(num_new_tokens_, 0);
  return std::exchange(inbox_, {});
}

void LocalEngine::open_letter(Letter& letter) {
  if (auto* submission = std::get_if<Submission>(&letter)) {
    engine_.submit(submission->id, std::move(submission->request), std::move(submission->on_piece));
  } else if (auto* cancellation = std::get_if<Cancellation>(&letter)) {
    engine_.cancel(cancellation->id);
  } else if (auto* embedding = std::get_if<Embedding>(&letter)) {
    embedding->answer.set_value(engine_.embed(embedding->input));
  }
}

void LocalEngine::close(const std::string& reason) {
  std::vector<Letter> letters;
  {
    const std::lock_guard lock(inbox_mutex_);
    closed_because_ = reason;
    letters = std::exchange(inbox_, {});
    num_new_ = num_new_tokens_ = 0;
  }
  for (Letter& letter : letters) {
    if (auto* submission = std::get_if<Submission>(&letter)) {
      Piece piece;
      piece.finish = Finish::kError;
      piece.error = reason;
      piece.is_last = true;
      submission->on_piece(piece);
    } else if (auto* embedding = std::get_if<Embedding>(&letter)) {
      embedding->answer.set_value(Error{ErrorCode::kUnavailable, reason});
    }
  }
}

}  // namespace pelago::serve
