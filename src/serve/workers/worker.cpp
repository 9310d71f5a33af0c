#include "serve/workers/worker.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "base/threads.h"
#include "model/config.h"
#include "serve/workers/link/link.h"

namespace pelago::serve {

namespace {

constexpr double kBeat_s = 0.1;

class Worker {
 public:
  explicit Worker(int socket)
      : link_(socket),
        beats_([this](const std::stop_token& stop) { beat(stop); }),
        embeds_([this] { embed(); }) {}

  ~Worker() {
    embeddings_.close();
    link_.shut();
  }

  int serve(const OpenWorkerEngine& open) {
    link_.read([&](Message message) {
      if (auto* opening = std::get_if<OpenMessage>(&message)) return open_engine(*opening, open);
      if (!engine_) return;
      if (auto* submission = std::get_if<SubmitMessage>(&message)) return submit(*submission);
      if (const auto* gone = std::get_if<CancelMessage>(&message)) return cancel(gone->id);
      if (auto* inputs = std::get_if<EmbedMessage>(&message)) embeddings_.push(std::move(*inputs));
    });
    return exit_code_;
  }

 private:
  void open_engine(const OpenMessage& opening, const OpenWorkerEngine& open) {
    folder_ = opening.folder;
    try {
      engine_ = open(opening);
    } catch (const Failure& failure) {
      return lose(failure.what(), failure.exit_code());
    } catch (const std::exception& error) {
      const std::string words = error.what();
      return lose(words.substr(0, words.find('\n')), kExitFailed);
    }
    link_.send(
        ReadyMessage{.context_length = engine_->context_length(), .stats = engine_->stats()});
    open_engine_ = engine_.get();
  }

  void lose(const std::string& why, int exit_code) {
    exit_code_ = exit_code;
    link_.send(LostMessage{.why = why, .exit_code = exit_code});
    link_.shut();
  }

  void submit(SubmitMessage& asked) {
    const RequestId id = asked.id;
    if (asked.constraint) {
      Result<std::shared_ptr<const TokenConstraint>> constraint = make(*asked.constraint);
      if (!constraint) return refuse(id, constraint.error());
      asked.request.constraint = std::move(*constraint);
    }
    // Held until the request has its place, so that its last piece finds it there.
    const std::lock_guard lock(mutex_);
    const auto taken = engine_->submit(std::move(asked.request), [this, id](const Piece& piece) {
      if (piece.is_last) {
        const std::lock_guard last_lock(mutex_);
        ids_.erase(id);
      }
      if (!link_.send(PieceMessage{.id = id, .piece = piece})) link_.shut();
    });
    if (taken) {
      ids_[id] = *taken;
    } else {
      refuse(id, taken.error());
    }
  }

  void cancel(RequestId id) {
    const std::lock_guard lock(mutex_);
    const auto known = ids_.find(id);
    if (known != ids_.end()) engine_->cancel(known->second);
  }

  Result<std::shared_ptr<const TokenConstraint>> make(const ConstraintSource& source) {
    if (!make_constraint_) {
      make_constraint_ =
          constraint_maker(data::Tokenizer::read(folder_ / "tokenizer.json"),
                           model::read_model_config(folder_ / "config.json").vocab_size);
    }
    return make_constraint_(source.kind, source.text);
  }

  void refuse(RequestId id, const Error& error) {
    link_.send(RefusalMessage{.id = id, .code = error.code, .message = error.message});
  }

  // On a thread of its own: an embedding waits for the engine, and cancels must not wait for it.
  void embed() {
    while (auto inputs = embeddings_.pop()) {
      auto vectors = engine_->embed(inputs->inputs);
      if (vectors) {
        link_.send(EmbeddedMessage{.id = inputs->id, .vectors = std::move(*vectors)});
      } else {
        refuse(inputs->id, vectors.error());
      }
    }
  }

  void beat(const std::stop_token& stop) {
    std::mutex mutex;
    std::condition_variable_any never;
    std::unique_lock lock(mutex);
    while (!stop.stop_requested()) {
      const Engine* engine = open_engine_.load();
      if (engine != nullptr && !engine->is_ready()) {
        return lose("the engine cannot answer any more", kExitFailed);
      }
      if (!link_.send(BeatMessage{.stats = engine == nullptr ? EngineStats() : engine->stats()})) {
        return link_.shut();
      }
      never.wait_for(lock, stop, std::chrono::duration<double>(kBeat_s), [] { return false; });
    }
  }

  Link link_;
  std::filesystem::path folder_;
  ConstraintMaker make_constraint_;  // once the first constraint is asked for
  std::atomic<int> exit_code_ = kExitDone;
  std::mutex mutex_;                              // guards ids_
  std::unordered_map<RequestId, RequestId> ids_;  // the router's, the engine's
  std::unique_ptr<Engine> engine_;
  std::atomic<const Engine*> open_engine_ = nullptr;  // the same, for the thread that beats
  BoundedQueue<EmbedMessage> embeddings_{64};
  std::jthread beats_, embeds_;  // last: they use everything above
};

}  // namespace

int run_worker(int socket, const OpenWorkerEngine& open) { return Worker(socket).serve(open); }

int run_worker(int socket) {
  return run_worker(socket, [](const OpenMessage& opening) {
    return open_engine(opening.folder, opening.engine);
  });
}

}  // namespace pelago::serve
