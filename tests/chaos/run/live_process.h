// A program of a run that is meant to be hurt: started like a service, in a namespace and a share
// of the processors of its own if need be, and looked at through /proc, which tells what a signal
// did.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace pelago::chaos {

struct LiveOptions {
  std::filesystem::path folder;    // it works here
  std::vector<std::string> words;  // the program first
  std::filesystem::path log;       // what it says is appended
  std::filesystem::path cgroup;    // of cgroup v1's cpu controller; empty: the caller's
};

/// A child that dies with the thread that started it, and with this object.
class LiveProcess {
 public:
  /// Throws Failure if there can be no more processes.
  explicit LiveProcess(const LiveOptions& options);
  LiveProcess(const LiveProcess&) = delete;
  LiveProcess& operator=(const LiveProcess&) = delete;
  ~LiveProcess();  // SIGKILL and reap

  pid_t pid() const { return pid_; }
  double started_s() const { return started_s_; }  // steady
  void signal(int number) const;
  /// Absent while it runs; 128 + signal if it was killed.
  std::optional<int> exit_code();

 private:
  pid_t pid_ = -1;
  double started_s_ = 0;
  std::optional<int> exit_code_;
};

/// 'R', 'S', 'D', 'T' (stopped), 'Z' (dead, not yet reaped); 0: there is no such process.
char state_of(pid_t pid);
/// Dead, reaped or not.
bool is_gone(pid_t pid);
std::vector<pid_t> children_of(pid_t pid);
/// Its words, joined by spaces.
std::string command_of(pid_t pid);
/// As ps shows it; at most 15 letters.
std::string name_of(pid_t pid);
/// Looks every 2 ms; returns whether all of them came into this state within the time. '-': gone.
bool reach_state(const std::vector<pid_t>& pids, char state, double timeout_s);

double steady_s();
double unix_s();
void pause_s(double seconds);

}  // namespace pelago::chaos
