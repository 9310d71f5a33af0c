// Threads that work through one pass of the model together, each on a core of its own. They all run
// the same function and meet between its parts: a thread that comes early spins, since the others
// are microseconds away, and sleeps only if they are not. A hand-over costs 0.3 us spinning and 20
// to 50 us from sleep, and a small model's pass has a hundred of them.
//
// The pieces of a part are taken by whoever is free, large ones first: other programs share the
// cores, and a thread that was held up must not hold up the rest. Only its first piece is each
// thread's own, so that it can fetch what that will read while it waits for the others: memory then
// never rests. Which thread computes a piece changes nothing in it.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <thread>
#include <vector>

namespace pelago::chips::packed {

class CoreTeam {
 public:
  /// num_threads: the caller of run() among them. cores: empty, or where thread i is bound to; the
  /// caller's thread is bound in its first run(), until release_caller() or the team's end.
  CoreTeam(int num_threads, std::vector<int> cores);
  CoreTeam(const CoreTeam&) = delete;
  CoreTeam& operator=(const CoreTeam&) = delete;
  ~CoreTeam();

  int num_threads() const { return num_threads_; }

  /// What one thread sees of the team while it works.
  class Member {
   public:
    int thread_idx() const { return thread_idx_; }
    int num_threads() const { return team_->num_threads_; }
    /// Memory of this thread's own, from a line of the cache on; holds nothing in particular, and
    /// is another's at the next call.
    std::byte* room(size_t num_bytes);
    /// Every member calls this with the same num_items: each item is in one [begin, end) of one
    /// member's call of work. Returns when all are done. grain: items are handed out in multiples.
    void share(size_t num_items,
               size_t grain,
               const std::function<void(size_t begin, size_t end)>& work);
    /// Where my first piece of such a part begins.
    size_t first_item(size_t num_items, size_t grain) const;
    /// What I shall read first after the waits to come: fetched into my cache while I wait.
    void will_read(const std::byte* begin, size_t num_bytes) { ahead_ = {begin, num_bytes}; }

   private:
    friend class CoreTeam;
    Member(CoreTeam& team, int thread_idx) : team_(&team), thread_idx_(thread_idx) {}
    size_t own_piece(size_t num_items, size_t grain) const;
    CoreTeam* team_;  // outlives me
    int thread_idx_;
    size_t part_ = 0;                   // how many were shared in this run
    std::span<const std::byte> ahead_;  // not fetched yet
  };

  /// Calls work on every thread and returns when all have returned. work must not throw.
  void run(const std::function<void(Member&)>& work);
  /// Gives the calling thread back the cores it had before its first run(). For whoever runs the
  /// team once and goes on to other things: what the thread starts or opens later sees its cores
  /// only, and a second team would have one.
  void release_caller();

 private:
  static constexpr size_t kCounters = 4;  // two are in use at a time

  void serve(int thread_idx, const std::stop_token& stop);
  void meet(Member& member);

  const int num_threads_;
  const std::vector<int> cores_;
  pid_t bound_caller_ = 0;                              // the kernel's number of a thread; 0: none
  std::vector<int> caller_cores_;                       // that it had before
  const std::function<void(Member&)>* work_ = nullptr;  // of the run that is on
  alignas(64) std::atomic<int32_t> run_idx_{0};
  alignas(64) std::atomic<int32_t> num_arrived_{0};
  alignas(64) std::atomic<int32_t> meeting_{0};  // how many meetings were held
  struct alignas(64) Counter {
    std::atomic<size_t> next{0};
  };
  std::array<Counter, kCounters> counters_;
  std::vector<std::vector<std::byte>> rooms_;  // a thread's, as large as it ever asked for
  std::vector<std::jthread> threads_;          // last: they end before what they use
};

}  // namespace pelago::chips::packed
