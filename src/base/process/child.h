// A child process that cannot outlive its owner: it dies with the thread that started it
// (PR_SET_PDEATHSIG), and the destructor kills and reaps it. The owner's thread must therefore live
// as long as the child should.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace pelago {

struct ChildOptions {
  std::filesystem::path program;
  std::vector<std::string> arguments;    // without the program itself
  std::vector<std::string> environment;  // "NAME=value", in place of what the parent has
  /// {descriptor here, number there}; every other descriptor above 2 is closed in the child.
  std::vector<std::pair<int, int>> descriptors;
  /// Standard error and, unless descriptors holds 1, standard output are appended to this file.
  std::filesystem::path log;
  bool ignore_interrupts = true;  // SIGINT and SIGTERM: the owner decides when the child ends
  std::vector<int> cores = {};    // that the child may run on; empty: those of its owner
};

class ChildProcess {
 public:
  /// Throws Failure naming the program and the reason if it cannot be started.
  explicit ChildProcess(const ChildOptions& options);
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&&) = delete;
  ~ChildProcess();  // SIGKILL and reap, unless it has ended

  pid_t pid() const { return pid_; }
  bool has_ended() const { return status_.has_value(); }
  /// Waits at most timeout_s for the end. Returns whether it has ended.
  bool wait(double timeout_s);
  /// "ended with exit code 1", "was killed by signal 9 (Killed)"; "is running" before the end.
  std::string how_it_ended() const;
  bool was_killed() const;  // by a signal
  int exit_code() const;    // -1 if it was killed or runs
  void kill();

 private:
  pid_t pid_ = -1;
  std::optional<int> status_;  // of waitpid, once reaped
};

}  // namespace pelago
