// Which of several workers takes a request: the one that knows most of the prompt, unless others
// have much less to do. The rule and its parameters are those of SGLang's router ("cache_aware",
// sgl-model-gateway: share of the prompt, absolute and relative imbalance), with a margin for a few
// workers of some cores in place of a rack of GPUs.
//
// What a worker knows is guessed, not asked: prompts are cut into pages as the engines cut them,
// and each page has a mark, a hash of itself and of all before it. The marks of what was sent to a
// worker are remembered, the least recently used forgotten first, as many as it has pages. A guess
// that is wrong costs a prompt's computation, never an answer.
//
// Pure: no clock, no chance, no processes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

namespace pelago::serve {

struct RouteOptions {
  int64_t page_tokens = 32;      // of the engines: no less is found again
  double known_share_min = 0.3;  // of a prompt; below, going where it is known is not worth a queue
  int64_t margin_sequences = 4;  // a worker may have so many more than the least loaded one,
  double margin_ratio = 1.5;  // or this many times as many, and still be chosen for what it knows
};

/// A worker as it stands now.
struct WorkerLoad {
  bool is_open = false;       // takes requests
  int64_t num_sequences = 0;  // sent and not ended
};

class RoutePolicy {
 public:
  RoutePolicy(size_t num_workers, const RouteOptions& options);

  /// The marks of a prompt's whole pages, in order.
  std::vector<uint64_t> marks_of(std::span<const int32_t> prompt) const;
  /// The worker that should take a prompt with these marks; -1 if none is open.
  int choose(std::span<const uint64_t> marks, std::span<const WorkerLoad> loads) const;
  /// How many of the first marks a worker knows.
  size_t num_known(size_t worker_idx, std::span<const uint64_t> marks) const;

  /// The worker got a prompt with these marks.
  void remember(size_t worker_idx, std::span<const uint64_t> marks);
  /// The worker starts anew, with memory for so many pages.
  void forget(size_t worker_idx, size_t num_pages);
  size_t num_remembered(size_t worker_idx) const { return workers_[worker_idx].places.size(); }

 private:
  struct Memory {
    size_t num_marks_max = 0;
    std::list<uint64_t> marks;  // the most recently used first
    std::unordered_map<uint64_t, std::list<uint64_t>::iterator> places;
  };
  const RouteOptions options_;
  std::vector<Memory> workers_;
};

}  // namespace pelago::serve
