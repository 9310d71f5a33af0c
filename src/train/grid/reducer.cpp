#include "train/grid/reducer.h"

#include <utility>

namespace pelago::train {

namespace {
constexpr size_t kReductionsMax = 4096;  // of one step: more than any model has buckets
}

Reducer::Reducer() : reductions_(kReductionsMax), thread_([this] { work(); }) {}

Reducer::~Reducer() { reductions_.close(); }

void Reducer::add(std::function<void()> reduction) {
  {
    const std::lock_guard lock(state_mutex_);
    ++num_open_;
  }
  reductions_.push(std::move(reduction));
}

void Reducer::wait() {
  std::unique_lock lock(state_mutex_);
  changed_.wait(lock, [&] { return num_open_ == 0; });
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Reducer::work() {
  while (std::optional<std::function<void()>> reduction = reductions_.pop()) {
    std::exception_ptr failure;
    {
      const std::lock_guard lock(state_mutex_);
      failure = failure_;
    }
    if (!failure) {
      try {
        (*reduction)();
      } catch (...) {
        failure = std::current_exception();
      }
    }
    reduction.reset();  // what it holds is free before its end is told
    const std::lock_guard lock(state_mutex_);
    failure_ = failure;
    if (--num_open_ == 0) changed_.notify_all();
  }
}

}  // namespace pelago::train
