#include "chaos/run/live_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/error.h"

namespace pelago::chaos {

namespace fs = std::filesystem;

namespace {

struct Stat {
  char state = 0;
  pid_t parent = -1;
};

// "PID (NAME) STATE PARENT ...": the name may hold anything, brackets too.
Stat stat_of(pid_t pid) {
  std::ifstream in(fmt::format("/proc/{}/stat", pid));
  std::string line;
  std::getline(in, line);
  const size_t bracket = line.rfind(')');
  Stat stat;
  if (bracket == std::string::npos) return stat;
  std::istringstream(line.substr(bracket + 1)) >> stat.state >> stat.parent;
  return stat;
}

[[noreturn]] void become(const LiveOptions& options, std::vector<char*>& argv) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::setpgid(0, 0);
  for (const int number : {SIGTERM, SIGINT, SIGPIPE}) ::signal(number, SIG_DFL);
  if (!options.cgroup.empty()) {
    const int group = ::open((options.cgroup / "cgroup.procs").c_str(), O_WRONLY);
    if (group < 0 || ::write(group, "0", 1) != 1) ::_exit(126);
    ::close(group);
  }
  if (::chdir(options.folder.c_str()) != 0) ::_exit(126);
  const int log = ::open(options.log.c_str(), O_CREAT | O_APPEND | O_WRONLY, 0600);
  ::dup2(log, 1);
  ::dup2(log, 2);
  ::dup2(::open("/dev/null", O_RDONLY), 0);
  ::execvp(argv[0], argv.data());
  ::_exit(127);
}

}  // namespace

LiveProcess::LiveProcess(const LiveOptions& options) : started_s_(steady_s()) {
  std::vector<char*> argv;
  for (const std::string& word : options.words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  pid_ = ::fork();
  if (pid_ < 0) fail("cannot start another process");
  if (pid_ == 0) become(options, argv);
}

LiveProcess::~LiveProcess() {
  if (exit_code()) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void LiveProcess::signal(int number) const {
  if (!exit_code_) ::kill(pid_, number);
}

std::optional<int> LiveProcess::exit_code() {
  int status = 0;
  if (!exit_code_ && ::waitpid(pid_, &status, WNOHANG) == pid_) {
    exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  return exit_code_;
}

char state_of(pid_t pid) { return stat_of(pid).state; }

bool is_gone(pid_t pid) {
  const char state = state_of(pid);
  return state == 0 || state == 'Z' || state == 'X';
}

std::vector<pid_t> children_of(pid_t pid) {
  std::vector<pid_t> children;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const auto other = static_cast<pid_t>(std::stoi(name));
    const Stat stat = stat_of(other);
    if (stat.parent == pid && stat.state != 'Z') children.push_back(other);
  }
  std::sort(children.begin(), children.end());
  return children;
}

std::string command_of(pid_t pid) {
  std::ifstream in(fmt::format("/proc/{}/cmdline", pid), std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  std::string line = text.str();
  std::replace(line.begin(), line.end(), '\0', ' ');
  return line;
}

std::string name_of(pid_t pid) {
  std::ifstream in(fmt::format("/proc/{}/comm", pid));
  std::string name;
  std::getline(in, name);
  return name;
}

bool reach_state(const std::vector<pid_t>& pids, char state, double timeout_s) {
  const auto is_there = [&](pid_t pid) {
    return state == '-' ? is_gone(pid) : state_of(pid) == state;
  };
  const double deadline_s = steady_s() + timeout_s;
  while (!std::all_of(pids.begin(), pids.end(), is_there)) {
    if (steady_s() > deadline_s) return false;
    pause_s(0.002);
  }
  return true;
}

double steady_s() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

double unix_s() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

void pause_s(double seconds) {
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

}  // namespace pelago::chaos
