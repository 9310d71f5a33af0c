// Carries out reductions in the order they were given, on a thread of its own, so that they go on
// while the device computes the gradients of earlier blocks.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "base/threads.h"

namespace pelago::train {

class Reducer {
 public:
  Reducer();
  ~Reducer();
  Reducer(const Reducer&) = delete;
  Reducer& operator=(const Reducer&) = delete;

  void add(std::function<void()> reduction);
  /// Waits until all are done; throws what one of them threw, after which the others were skipped.
  void wait();

 private:
  void work();

  BoundedQueue<std::function<void()>> reductions_;
  std::mutex state_mutex_;  // guards num_open_ and failure_
  std::condition_variable changed_;
  int64_t num_open_ = 0;
  std::exception_ptr failure_;
  std::jthread thread_;  // last: it uses the members above
};

}  // namespace pelago::train
