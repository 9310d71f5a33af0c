// A loop over items by several threads. Who takes which item is chance; what is done with it must
// not depend on that.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace pelago::data {

/// Calls work(item_idx, thread_idx) once for each item; thread_idx < num_threads. The first
/// exception ends the loop and is thrown here.
template <typename Work>
void for_each_in_parallel(size_t num_items, int num_threads, const Work& work) {
  std::atomic<size_t> next_item = 0;
  std::mutex failure_mutex;  // guards failure
  std::exception_ptr failure;
  const auto run = [&](size_t thread_idx) {
    try {
      for (size_t idx = next_item++; idx < num_items; idx = next_item++) work(idx, thread_idx);
    } catch (...) {
      next_item = num_items;
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> threads;
    const size_t num_used = std::min(num_items, static_cast<size_t>(num_threads));
    for (size_t thread_idx = 1; thread_idx < num_used; ++thread_idx) {
      threads.emplace_back(run, thread_idx);
    }
    run(0);
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace pelago::data
