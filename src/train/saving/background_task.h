// One piece of work at a time on a thread of its own, so that training does not wait for a disk.
#pragma once

#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <exception>
#include <functional>
#include <optional>
#include <thread>
#include <utility>

#include "base/error.h"

namespace pelago::train {

class BackgroundTask {
 public:
  /// For work that nobody waits for: the calling thread gets a tenth of a core that others want.
  static void give_way_to_others() {
    constexpr int kNice = 10;
    ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kNice);
  }

  /// Waits for the work before, if there is any; its result is lost unless it was taken. What
  /// work throws becomes kUnavailable.
  void start(std::function<Status()> work) {
    wait();
    is_running_ = true;
    result_.reset();
    thread_ = std::jthread([this, work = std::move(work)] {
      try {
        result_ = work();
      } catch (const std::exception& error) {
        result_ = Error{ErrorCode::kUnavailable, error.what()};
      }
      is_running_ = false;
    });
  }

  bool is_running() const { return is_running_; }
  void wait() {
    if (thread_.joinable()) thread_.join();
  }
  /// Once, when the work is done.
  std::optional<Status> take_result() {
    if (is_running_) return std::nullopt;
    wait();
    return std::exchange(result_, std::nullopt);
  }

 private:
  std::atomic<bool> is_running_ = false;
  std::optional<Status> result_;  // the thread's until it has ended
  std::jthread thread_;           // last: it uses the members above
};

}  // namespace pelago::train
