#include "base/process/child.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/clock.h"
#include "base/error.h"

extern char** environ;

namespace pelago {

namespace {

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

std::vector<std::string> environment_with(const std::vector<std::string>& changes) {
  std::vector<std::string> all;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('=') + 1);
    const bool is_replaced = std::any_of(changes.begin(), changes.end(), [&](const auto& change) {
      return change.rfind(name, 0) == 0;
    });
    if (!is_replaced) all.push_back(text);
  }
  all.insert(all.end(), changes.begin(), changes.end());
  return all;
}

struct ChildPlan {
  const char* program;
  char** arguments;
  char** environment;
  const std::pair<int, int>* descriptors;
  size_t num_descriptors;
  int log;  // -1: standard error stays
  bool ignore_interrupts;
  pid_t parent;
  const cpu_set_t* cores;  // null: as they are
};

// Between fork and exec only async-signal-safe calls: the parent may have threads that held locks.
[[noreturn]] void become(const ChildPlan& plan) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != plan.parent) ::_exit(127);  // it died before prctl took effect
  // Here, since libraries start threads before main(), which keep what the process began with.
  if (plan.cores != nullptr) ::sched_setaffinity(0, sizeof *plan.cores, plan.cores);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (plan.ignore_interrupts) {
    ::signal(SIGINT, SIG_IGN);
    ::signal(SIGTERM, SIG_IGN);
  }
  if (plan.log >= 0) {
    ::dup2(plan.log, 1);
    ::dup2(plan.log, 2);
  }
  int highest = 2;
  for (size_t i = 0; i < plan.num_descriptors; ++i) {
    if (::dup2(plan.descriptors[i].first, plan.descriptors[i].second) < 0) ::_exit(127);
    highest = std::max(highest, plan.descriptors[i].second);
  }
  ::close_range(static_cast<unsigned>(highest) + 1, ~0U, CLOSE_RANGE_CLOEXEC);
  ::execve(plan.program, plan.arguments, plan.environment);
  ::_exit(127);
}

/// Descriptors moved out of the way of the numbers they shall get; closed again when it goes.
struct LiftedDescriptors {
  std::vector<std::pair<int, int>> pairs;
  ~LiftedDescriptors() {
    for (const auto& [lifted, target] : pairs) ::close(lifted);
  }
};

constexpr int kFirstLifted = 64;  // above every number that a child is given

}  // namespace

ChildProcess::ChildProcess(const ChildOptions& options) {
  std::vector<std::string> arguments{options.program.string()};
  arguments.insert(arguments.end(), options.arguments.begin(), options.arguments.end());
  std::vector<std::string> environment = environment_with(options.environment);
  std::vector<char*> argument_pointers = pointers_to(arguments);
  std::vector<char*> environment_pointers = pointers_to(environment);
  LiftedDescriptors lifted;
  for (const auto& [here, there] : options.descriptors) {
    const int copy = ::fcntl(here, F_DUPFD_CLOEXEC, kFirstLifted);
    if (copy < 0) fail("cannot copy a descriptor for a child: {}", std::strerror(errno));
    lifted.pairs.emplace_back(copy, there);
  }
  int log = -1;
  if (!options.log.empty()) {
    log = ::open(options.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (log < 0) fail("{}: cannot write: {}", options.log.string(), std::strerror(errno));
  }
  cpu_set_t cores;
  CPU_ZERO(&cores);
  for (const int core : options.cores) CPU_SET(core, &cores);
  const ChildPlan plan{.program = options.program.c_str(),
                       .arguments = argument_pointers.data(),
                       .environment = environment_pointers.data(),
                       .descriptors = lifted.pairs.data(),
                       .num_descriptors = lifted.pairs.size(),
                       .log = log,
                       .ignore_interrupts = options.ignore_interrupts,
                       .parent = ::getpid(),
                       .cores = options.cores.empty() ? nullptr : &cores};
  pid_ = ::fork();
  if (pid_ == 0) become(plan);
  const int reason = errno;
  if (log >= 0) ::close(log);
  if (pid_ < 0) fail("cannot start {}: {}", options.program.string(), std::strerror(reason));
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), status_(other.status_) {}

ChildProcess::~ChildProcess() {
  if (pid_ < 0 || has_ended()) return;
  kill();
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
}

bool ChildProcess::wait(double timeout_s) {
  const double deadline_s = steady_now_s() + timeout_s;
  constexpr double kLookAgainS = 0.005;
  while (!has_ended()) {
    int status = 0;
    const pid_t ended = ::waitpid(pid_, &status, WNOHANG);
    if (ended == pid_) status_ = status;
    if (ended < 0 && errno != EINTR) status_ = 127 << 8;  // reaped by someone else
    if (has_ended() || steady_now_s() >= deadline_s) break;
    sleep_until_s(std::min(deadline_s, steady_now_s() + kLookAgainS));
  }
  return has_ended();
}

std::string ChildProcess::how_it_ended() const {
  if (!has_ended()) return "is running";
  if (was_killed()) {
    const int signal = WTERMSIG(*status_);
    return fmt::format("was killed by signal {} ({})", signal, ::strsignal(signal));
  }
  return fmt::format("ended with exit code {}", exit_code());
}

bool ChildProcess::was_killed() const { return has_ended() && WIFSIGNALED(*status_); }

int ChildProcess::exit_code() const {
  return has_ended() && WIFEXITED(*status_) ? WEXITSTATUS(*status_) : -1;
}

void ChildProcess::kill() {
  if (pid_ > 0 && !has_ended()) ::kill(pid_, SIGKILL);
}

}  // namespace pelago
