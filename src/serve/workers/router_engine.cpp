#include "serve/workers/router_engine.h"

#include <algorithm>

#include "base/clock.h"
#include "serve/workers/router_worker.h"

namespace pelago::serve {

namespace {

constexpr const char* kLostWords =
    "the worker that computed this answer was lost: send the request again";

Piece last_piece(Finish finish, const std::string& error) {
  Piece piece;
  piece.finish = finish;
  piece.error = error;
  piece.is_last = true;
  return piece;
}

RouteOptions route_of(const RouterOptions& options) {
  RouteOptions route = options.route;
  route.page_tokens = options.engine.page_tokens;
  return route;
}

}  // namespace

void add_counters(EngineStats& sum, const EngineStats& one) {
  sum.prompt_tokens += one.prompt_tokens;
  sum.cached_tokens += one.cached_tokens;
  sum.completion_tokens += one.completion_tokens;
  sum.num_finished += one.num_finished;
  sum.num_cancelled += one.num_cancelled;
  sum.num_refused += one.num_refused;
  sum.num_preempted += one.num_preempted;
  sum.draft_tokens += one.draft_tokens;
  sum.draft_accepted += one.draft_accepted;
  sum.num_read_elsewhere += one.num_read_elsewhere;
  sum.num_prefill_restarts += one.num_prefill_restarts;
}

RouterEngine::RouterEngine(RouterOptions options, StartWorker start)
    : options_(std::move(options)),
      start_(std::move(start)),
      limits_({.context_length = 0,
               .vocab_size = options_.vocab_size,
               .choices_max = options_.engine.scheduler_limits().rows_max()}),
      policy_(options_.num_workers, route_of(options_)),
      places_(options_.num_workers),
      supervisor_([this](const std::stop_token& stop) { supervise(stop); }) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] {
    if (opening_failure_) return true;
    for (size_t idx = 0; idx < places_.size(); ++idx) {
      if (ready_worker(idx) == nullptr) return false;
    }
    return true;
  });
  if (opening_failure_) throw Failure(opening_failure_->first, opening_failure_->second);
  is_opening_ = false;
}

RouterEngine::~RouterEngine() {
  {
    const std::lock_guard lock(mutex_);
    is_closing_ = true;
  }
  supervisor_.request_stop();
  supervisor_.join();
}

RouterEngine::Worker* RouterEngine::ready_worker(size_t worker_idx) const {
  for (const auto& worker : workers_) {
    if (worker->worker_idx == worker_idx && worker->state == Worker::State::kReady)
      return worker.get();
  }
  return nullptr;
}

Result<RouterEngine::Worker*> RouterEngine::choose(const std::vector<uint64_t>& marks,
                                                   int64_t num_prompt,
                                                   int num_choices) {
  std::vector<WorkerLoad> loads(places_.size());
  int64_t num_ready = 0, num_sequences = 0;
  for (size_t idx = 0; idx < loads.size(); ++idx) {
    const Worker* worker = ready_worker(idx);
    if (worker == nullptr) continue;
    ++num_ready;
    num_sequences += worker->num_sequences;
    loads[idx] = {.is_open = worker->num_prompt + num_prompt <= options_.prompt_tokens_max,
                  .num_sequences = worker->num_sequences};
  }
  if (num_ready == 0 || is_closing_) {
    return Error{ErrorCode::kUnavailable, "no worker is ready: try again"};
  }
  const int64_t num_waiting =
      num_sequences - num_ready * options_.engine.scheduler_limits().sequences_max;
  const int chosen = policy_.choose(marks, loads);
  if (num_waiting + num_choices > options_.waiting_max || chosen < 0) {
    ++num_refused_;
    return Error{
        ErrorCode::kNoSpace,
        fmt::format("{} answers are computed or wait already: try again later", num_sequences)};
  }
  policy_.remember(static_cast<size_t>(chosen), marks);
  return ready_worker(static_cast<size_t>(chosen));
}

Result<RequestId> RouterEngine::submit(GenerateRequest request,
                                       std::function<void(const Piece&)> on_piece) {
  const Status status = check_request(request, limits_);
  SubmitMessage message;
  if (request.constraint) {
    const ConstraintSource* source = source_of(*request.constraint);
    PELAGO_ASSERT(source != nullptr, "constraints for workers know what they were made of");
    message.constraint = *source;
  }
  const auto sent = std::make_shared<Worker::Sent>(
      Worker::Sent{.on_piece = std::move(on_piece),
                   .num_sequences = request.num_choices,
                   .num_prompt = static_cast<int64_t>(request.prompt.size())});
  const std::vector<uint64_t> marks = policy_.marks_of(request.prompt);
  std::shared_ptr<Link> link;
  {
    const std::lock_guard lock(mutex_);
    if (!status) {
      ++num_refused_;
      return status.error();
    }
    const Result<Worker*> worker = choose(marks, sent->num_prompt, request.num_choices);
    if (!worker) return worker.error();
    message.id = next_id_++;
    (*worker)->sent[message.id] = sent;
    (*worker)->num_sequences += sent->num_sequences;
    (*worker)->num_prompt += sent->num_prompt;
    link = (*worker)->link;
  }
  message.request = std::move(request);
  const RequestId id = message.id;
  if (link->send(std::move(message))) return id;
  const std::lock_guard lock(mutex_);
  for (const auto& worker : workers_) {
    if (worker->sent.erase(id) == 0) continue;
    worker->forget(*sent);
    return Error{ErrorCode::kUnavailable, "the worker cannot be reached: try again"};
  }
  return id;  // it was broken off already, which the caller has heard
}

void RouterEngine::cancel(RequestId id) {
  std::shared_ptr<Link> link;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& worker : workers_) {
      if (worker->sent.contains(id)) link = worker->link;
    }
  }
  if (link) link->send(CancelMessage{.id = id});
}

Result<std::vector<std::vector<float>>> RouterEngine::embed(
    const std::vector<std::vector<int32_t>>& inputs) {
  std::future<Result<std::vector<std::vector<float>>>> answer;
  std::shared_ptr<Link> link;
  RequestId id = 0;
  {
    const std::lock_guard lock(mutex_);
    const Result<Worker*> worker = choose({}, 0, 0);
    if (!worker) return worker.error();
    id = next_id_++;
    answer = (*worker)->embeddings[id].get_future();
    link = (*worker)->link;
  }
  if (link->send(EmbedMessage{.id = id, .inputs = inputs})) return answer.get();
  const std::lock_guard lock(mutex_);
  for (const auto& worker : workers_) worker->embeddings.erase(id);
  return Error{ErrorCode::kUnavailable, "the worker cannot be reached: try again"};
}

EngineStats RouterEngine::stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats sum = ended_;
  sum.num_refused += num_refused_;
  for (const auto& worker : workers_) {
    add_counters(sum, worker->stats);
    sum.num_running += worker->stats.num_running;
    sum.num_waiting += worker->stats.num_waiting;
    sum.num_pages += worker->stats.num_pages;
    sum.num_pages_used += worker->stats.num_pages_used;
    sum.num_pages_cached += worker->stats.num_pages_cached;
    sum.num_prefill_sides += worker->stats.num_prefill_sides;
    sum.num_prefill_up += worker->stats.num_prefill_up;
  }
  return sum;
}

std::vector<WorkerStats> RouterEngine::workers() const {
  const std::lock_guard lock(mutex_);
  std::vector<WorkerStats> all(places_.size());
  for (size_t idx = 0; idx < all.size(); ++idx) {
    all[idx].worker_idx = idx;
    all[idx].num_lost = places_[idx].num_lost;
  }
  for (const auto& worker : workers_) {
    WorkerStats& place = all[worker->worker_idx];
    place.num_sequences += worker->num_sequences;
    if (place.is_ready || worker->state == Worker::State::kLost) continue;
    place.is_ready = worker->state == Worker::State::kReady;
    place.pid = worker->host ? worker->host->pid() : 0;
    place.engine = worker->stats;
  }
  return all;
}

bool RouterEngine::is_ready() const {
  const std::lock_guard lock(mutex_);
  return !is_closing_ && std::ranges::any_of(workers_, [](const auto& worker) {
    return worker->state == Worker::State::kReady;
  });
}

void RouterEngine::replace_workers() {
  const std::lock_guard lock(mutex_);
  version_wanted_ = ++version_last_;
  changed_.notify_all();
}

// ---- what workers say ----

void RouterEngine::read(Worker& worker) {
  const std::string why = worker.link->read([&](Message message) {
    {
      const std::lock_guard lock(mutex_);
      worker.heard_s = steady_now_s();
      worker.has_spoken = true;
      if (const auto* beat = std::get_if<BeatMessage>(&message)) worker.stats = beat->stats;
      if (const auto* ready = std::get_if<ReadyMessage>(&message)) note_ready(worker, *ready);
      if (const auto* lost = std::get_if<LostMessage>(&message)) {
        worker.lost_because = lost->why;
        worker.exit_code = lost->exit_code;
      }
    }
    if (auto* piece = std::get_if<PieceMessage>(&message)) handle(worker, *piece);
    if (const auto* refusal = std::get_if<RefusalMessage>(&message)) handle(worker, *refusal);
    if (auto* vectors = std::get_if<EmbeddedMessage>(&message)) handle(worker, *vectors);
  });
  worker.link->shut();  // it may have sent nonsense and live
  {
    const std::lock_guard lock(mutex_);
    if (worker.lost_because.empty()) worker.lost_because = why;
  }
  break_off(worker);
}

void RouterEngine::handle(Worker& worker, PieceMessage& message) {
  std::shared_ptr<Worker::Sent> sent;
  {
    const std::lock_guard lock(mutex_);
    const auto known = worker.sent.find(message.id);
    if (known == worker.sent.end()) return;
    sent = known->second;
    if (message.piece.is_last) {
      worker.forget(*sent);
      worker.sent.erase(known);
      if (worker.is_idle()) changed_.notify_all();
    }
  }
  sent->on_piece(message.piece);
}

void RouterEngine::handle(Worker& worker, const RefusalMessage& message) {
  {
    const std::lock_guard lock(mutex_);
    const auto known = worker.embeddings.find(message.id);
    if (known != worker.embeddings.end()) {
      known->second.set_value(Error{message.code, message.message});
      worker.embeddings.erase(known);
      return;
    }
  }
  const bool may_retry = message.code != ErrorCode::kRefused;
  PieceMessage piece{
      .id = message.id,
      .piece = last_piece(may_retry ? Finish::kCancelled : Finish::kError, message.message)};
  handle(worker, piece);
}

void RouterEngine::handle(Worker& worker, EmbeddedMessage& message) {
  const std::lock_guard lock(mutex_);
  const auto known = worker.embeddings.find(message.id);
  if (known == worker.embeddings.end()) return;
  known->second.set_value(std::move(message.vectors));
  worker.embeddings.erase(known);
}

void RouterEngine::break_off(Worker& worker) {
  std::unordered_map<RequestId, std::shared_ptr<Worker::Sent>> sent;
  std::string why;
  {
    const std::lock_guard lock(mutex_);
    note_loss(worker);
    worker.state = Worker::State::kLost;
    sent.swap(worker.sent);
    worker.num_sequences = worker.num_prompt = 0;
    for (auto& [id, promise] : worker.embeddings) {
      promise.set_value(Error{ErrorCode::kUnavailable, kLostWords});
    }
    worker.embeddings.clear();
    if (!is_closing_) why = kLostWords;
  }
  for (const auto& [id, one] : sent) one->on_piece(last_piece(Finish::kCancelled, why));
  const std::lock_guard lock(mutex_);
  changed_.notify_all();
}

}  // namespace pelago::serve
