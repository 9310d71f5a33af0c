// Threads are jthreads with one owner; they speak through bounded queues and are bound to cores.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

namespace pelago {

/// The processors this process may run on, in order.
inline std::vector<int> allowed_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return {0};
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

/// Binds the calling thread, and every thread it starts later, to these cores. Left unbound, the
/// kernel packs busy threads onto few processors and a two-thread run goes at half speed. Returns
/// false if refused.
inline bool bind_to_cores(const std::vector<int>& cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int core : cores) CPU_SET(core, &set);
  return pthread_setaffinity_np(pthread_self(), sizeof set, &set) == 0;
}

/// A queue between threads that never grows past its bound. close() lets readers drain and then
/// end.
template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t num_items_max) : num_items_max_(num_items_max) {}

  /// Waits for room. Returns false if the queue was closed.
  bool push(T item) {
    std::unique_lock lock(items_mutex_);
    changed_.wait(lock, [&] { return closed_ || items_.size() < num_items_max_; });
    if (closed_) return false;
    items_.push_back(std::move(item));
    changed_.notify_all();
    return true;
  }

  /// Waits for an item. Returns nothing once the queue is closed and empty.
  std::optional<T> pop() {
    std::unique_lock lock(items_mutex_);
    changed_.wait(lock, [&] { return closed_ || !items_.empty(); });
    return take_front();
  }

  /// Waits at most timeout_s for an item.
  std::optional<T> pop_for(double timeout_s) {
    std::unique_lock lock(items_mutex_);
    changed_.wait_for(
        lock, std::chrono::duration<double>(timeout_s), [&] { return closed_ || !items_.empty(); });
    return take_front();
  }

  void close() {
    const std::lock_guard lock(items_mutex_);
    closed_ = true;
    changed_.notify_all();
  }

 private:
  std::optional<T> take_front() {
    if (items_.empty()) return std::nullopt;
    std::optional<T> item(std::move(items_.front()));
    items_.pop_front();
    changed_.notify_all();
    return item;
  }

  const size_t num_items_max_;
  std::mutex items_mutex_;  // guards items_ and closed_
  std::condition_variable changed_;
  std::deque<T> items_;
  bool closed_ = false;
};

}  // namespace pelago
