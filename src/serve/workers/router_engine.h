// Many workers as one engine: each request goes to one of them (RoutePolicy) and its pieces come
// back. Tokens, text and limits are checked here, so that a worker only computes.
//
//   submit() -> RoutePolicy -> Link ===socket===> worker's LocalEngine
//   on_piece <- reader thread of the link <====== pieces, beats
//
// A supervisor keeps every place filled. A worker that ends, or says nothing for silence_max_s, is
// replaced; what it was answering ends with an error, since nobody can tell what of it was sent,
// and a request that kills whoever computes it must not wander from worker to worker. Replacing all
// of them, for new weights, goes one by one: the next one is ready before the old one gets nothing
// new, and the old one ends when its last answer is out.
#pragma once

#include <condition_variable>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "serve/engine.h"
#include "serve/local/local_engine.h"
#include "serve/local/request_check.h"
#include "serve/runner/shared_weights.h"
#include "serve/workers/link/messages.h"
#include "serve/workers/restart_pace.h"
#include "serve/workers/route_policy.h"

namespace pelago::serve {

/// What a worker runs in: a child process, or a thread in tests. Ends with this object.
class WorkerHost {
 public:
  WorkerHost() = default;
  WorkerHost(const WorkerHost&) = delete;
  WorkerHost& operator=(const WorkerHost&) = delete;
  virtual ~WorkerHost() = default;
  virtual int64_t pid() const = 0;
  /// At once, whatever it is doing; its end of the socket closes.
  virtual void kill() = 0;
  /// Gives it timeout_s to end by itself, then kills it. Returns how it ended: "exit code 1".
  virtual std::string end(double timeout_s) = 0;
};
/// Starts a worker whose end of the link is socket, which stays the caller's to close. Throws
/// Failure. Called on one thread, which lives as long as the workers.
using StartWorker = std::function<std::unique_ptr<WorkerHost>(size_t worker_idx, int socket)>;

/// Children of this program (`pelago serve-worker`), each on its share of the cores; they die with
/// the router.
StartWorker start_worker_processes(size_t num_workers);

struct RouterOptions {
  size_t num_workers = 2;
  std::string folder;                     // Hugging Face's layout
  EngineOptions engine;                   // of each worker
  std::vector<std::string> devices = {};  // worker i opens number i, from the start again past the
                                          // last; empty: all open engine.device
  /// Who reads the prompts of a split's worker, and how many it reads itself.
  struct Prefill {
    std::string device;
    double local_share = 0;
  };
  std::vector<Prefill> prefill = {};  // as devices; empty: no split
  bool shares_weights = false;        // workers on processors have one packed copy
  int64_t vocab_size = 0;
  int64_t waiting_max = 256;              // requests beyond those that can be computed at once
  int64_t prompt_tokens_max = 4'000'000;  // sent to one worker and not ended: 16 MB
  double start_max_s = 120;   // to a worker's first word: loading libraries from a cold disk
  double silence_max_s = 10;  // 100 beats, later: then it hangs
  RestartLaw restarts = {};   // without quarantine: nobody else would serve
  RouteOptions route = {};
};

class RouterEngine final : public Engine {
 public:
  /// Starts the workers and waits for all. Throws Failure, as the worker that could not open the
  /// model said it.
  RouterEngine(RouterOptions options, StartWorker start);
  /// Ends what is under way as cancelled, and the workers.
  ~RouterEngine() override;

  Result<RequestId> submit(GenerateRequest request,
                           std::function<void(const Piece&)> on_piece) override;
  void cancel(RequestId id) override;
  Result<std::vector<std::vector<float>>> embed(
      const std::vector<std::vector<int32_t>>& inputs) override;
  EngineStats stats() const override;
  std::vector<WorkerStats> workers() const override;
  int64_t context_length() const override { return limits_.context_length; }
  /// While one worker lives.
  bool is_ready() const override;

  /// Replaces every worker by one that opens the folder as it is now; returns at once. If the first
  /// new one cannot, the old ones stay, and the log says why.
  void replace_workers();

 private:
  struct Worker;
  struct Place {
    uint64_t num_lost = 0;
    RestartPace pace;
    double not_before_s = 0;  // the next start
  };

  // With mutex_ held.
  Worker* ready_worker(size_t worker_idx) const;
  Result<Worker*> choose(const std::vector<uint64_t>& marks, int64_t num_prompt, int num_choices);
  std::optional<size_t> place_to_fill(double now_s) const;
  void note_ready(Worker& worker, const ReadyMessage& ready);
  void note_loss(const Worker& worker);
  // The supervisor's, without it.
  void supervise(const std::stop_token& stop);
  void look_after(double now_s);
  void start_worker(size_t worker_idx);
  void end(std::unique_ptr<Worker> worker);
  void end_all();
  // A link's thread, without it.
  void read(Worker& worker);
  void handle(Worker& worker, PieceMessage& message);
  void handle(Worker& worker, const RefusalMessage& message);
  void handle(Worker& worker, EmbeddedMessage& message);
  void break_off(Worker& worker);

  const RouterOptions options_;
  const StartWorker start_;

  mutable std::mutex mutex_;  // guards all below but the thread
  std::condition_variable_any changed_;
  RequestLimits limits_;
  RoutePolicy policy_;
  std::vector<Place> places_;
  std::vector<std::unique_ptr<Worker>> workers_;  // added and removed by the supervisor alone
  RequestId next_id_ = 1;
  uint64_t num_refused_ = 0;
  uint64_t version_wanted_ = 1, version_last_ = 1;  // of workers: replace_workers() asks for more
  bool is_opening_ = true, is_closing_ = false;
  std::optional<std::pair<std::string, int>> opening_failure_;  // why, exit code
  std::unique_ptr<SharedWeightsFile> weights_;  // the supervisor's; of version weights_version_
  uint64_t weights_version_ = 0;
  EngineStats ended_;  // counters of workers that are gone

  std::jthread supervisor_;  // last: it uses everything above
};

}  // namespace pelago::serve
