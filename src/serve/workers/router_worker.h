// A worker as the router keeps it: its process, its link, and what it has been sent. The router's
// mutex guards all but link and host.
#pragma once

#include <future>
#include <string>
#include <unordered_map>

#include "serve/workers/link/link.h"
#include "serve/workers/router_engine.h"

namespace pelago::serve {

struct RouterEngine::Worker {
  enum class State {
    kStarting,  // opens the model; gets nothing
    kReady,     // gets requests
    kRetiring,  // another took its place: ends what it has, gets nothing new
    kLost,      // its link has ended, what it had is broken off; to be buried
  };
  struct Sent {
    std::function<void(const Piece&)> on_piece;
    int64_t num_sequences = 0, num_prompt = 0;
  };
  using Embeddings = std::promise<Result<std::vector<std::vector<float>>>>;

  Worker(size_t the_worker_idx, uint64_t the_version, int socket, double now_s)
      : worker_idx(the_worker_idx),
        version(the_version),
        link(std::make_shared<Link>(socket)),
        started_s(now_s),
        heard_s(now_s) {}

  bool is_idle() const { return sent.empty() && embeddings.empty(); }
  void forget(const Sent& ended) {
    num_sequences -= ended.num_sequences;
    num_prompt -= ended.num_prompt;
  }

  const size_t worker_idx;
  const uint64_t version;
  const std::shared_ptr<Link> link;  // owners: this, and who is sending
  const double started_s;
  double ready_s = 0;                // since when it takes requests; 0: not yet
  std::unique_ptr<WorkerHost> host;  // the supervisor's
  State state = State::kStarting;
  double heard_s;  // when it last said something
  bool has_spoken = false;
  std::string lost_because;
  int exit_code = kExitFailed;  // that it said it would end with
  EngineStats stats;
  int64_t num_sequences = 0, num_prompt = 0;                  // sums of sent
  std::unordered_map<RequestId, std::shared_ptr<Sent>> sent;  // owners: this, a piece on its way
  std::unordered_map<RequestId, Embeddings> embeddings;
  std::jthread reader;  // last: it uses everything above
};

/// Adds what is counted since the start, not what is the case now.
void add_counters(EngineStats& sum, const EngineStats& one);

}  // namespace pelago::serve
