// Ctrl-C, SIGTERM and, if wanted, SIGHUP, heard on a thread of its own: what is called may take
// locks, free memory and remove folders, which a signal handler must not.
#pragma once

#include <csignal>
#include <functional>
#include <thread>

namespace pelago::cli {

class Interrupts {
 public:
  /// Calls on_interrupt for each Ctrl-C and SIGTERM, and on_hangup for each SIGHUP unless it is
  /// empty, until it is destroyed; then they do what they did before. One at a time: there is one
  /// set of signals in a process.
  explicit Interrupts(std::function<void()> on_interrupt, std::function<void()> on_hangup = {});
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;
  ~Interrupts();
  /// The work is done and nothing is left to stop: signals are ignored from here to the program's
  /// end, so that its exit code says that it is done.
  void ignore_from_now();

 private:
  std::function<void()> on_interrupt_, on_hangup_;
  int pipe_[2] = {-1, -1};  // the handler writes, the thread reads
  struct sigaction before_interrupt_ {};
  struct sigaction before_terminate_ {};
  struct sigaction before_hangup_ {};
  std::jthread thread_;
};

/// Says what was stopped and ends the program at once with the exit code of an interrupted one.
[[noreturn]] void leave_interrupted(const char* what);

}  // namespace pelago::cli
