// Runs the built program as a child process and keeps what it said.
#pragma once

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace pelago::testing {

namespace fs = std::filesystem;

inline std::string read_all(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

inline void write_all(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

/// A folder of this test alone, empty, removed at the end.
class Scratch {
 public:
  explicit Scratch(const std::string& name)
      : path_(fs::temp_directory_path() / fmt::format("pelago-{}-{}", name, ::getpid())) {
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  ~Scratch() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

struct Ended {
  int exit_code = -1;  // 128 + signal if it was killed
  std::string out, err;
};

struct ProgramOptions {
  std::vector<std::string> environment = {};  // "NAME=value", besides what this process has
  bool as_nobody = false;                     // without root's right to read everything
};

/// A child in a process group of its own, started in `folder`.
class Program {
 public:
  Program(const fs::path& folder,
          const std::vector<std::string>& arguments,
          const ProgramOptions& options = {})
      : folder_(folder) {
    static int count = 0;
    out_ = folder / fmt::format(".out-{}", count);
    err_ = folder / fmt::format(".err-{}", count++);
    pid_ = ::fork();
    ::setpgid(pid_, pid_);  // in both processes: whoever comes first
    if (pid_ != 0) return;
    ::signal(SIGTERM, SIG_DFL);
    ::signal(SIGINT, SIG_DFL);
    if (::chdir(folder.c_str()) != 0) ::_exit(126);
    ::dup2(::open(out_.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600), 1);
    ::dup2(::open(err_.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600), 2);
    ::dup2(::open("/dev/null", O_RDONLY), 0);
    for (const std::string& variable : options.environment)
      ::putenv(const_cast<char*>(variable.c_str()));
    constexpr unsigned kNobody = 65534;
    if (options.as_nobody && (::setgid(kNobody) != 0 || ::setuid(kNobody) != 0)) ::_exit(126);
    std::vector<char*> argv{const_cast<char*>(PELAGO_PROGRAM)};
    for (const std::string& argument : arguments)
      argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    ::execv(PELAGO_PROGRAM, argv.data());
    ::_exit(127);
  }

  pid_t pid() const { return pid_; }
  void signal(int number) const { ::kill(pid_, number); }
  std::string err_so_far() const { return read_all(err_); }
  std::string out_so_far() const { return read_all(out_); }

  /// Waits until `ready` holds; returns false if the child ended or the time passed first.
  bool wait_for(const std::function<bool()>& ready, double timeout_s) {
    // Counted, not timed: where a look takes long because the machine is busy, the wait is longer.
    constexpr int kLooksPerSecond = 20;
    for (int looks = 0; looks < static_cast<int>(kLooksPerSecond * timeout_s); ++looks) {
      if (ready()) return true;
      if (::waitpid(pid_, &status_, WNOHANG) == pid_) {
        reaped_ = true;
        return ready();
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1000 / kLooksPerSecond));
    }
    return false;
  }

  Ended wait() {
    if (!reaped_) ::waitpid(pid_, &status_, 0);
    reaped_ = true;
    const int code = WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
    return {code, read_all(out_), read_all(err_)};
  }

 private:
  fs::path folder_, out_, err_;
  pid_t pid_ = 0;
  int status_ = 0;
  bool reaped_ = false;
};

inline Ended run(const fs::path& folder,
                 const std::vector<std::string>& arguments,
                 const ProgramOptions& options = {}) {
  return Program(folder, arguments, options).wait();
}

/// Processes whose command line holds this text: what a run may leave behind.
inline std::vector<pid_t> processes_with(const std::string& text) {
  std::vector<pid_t> found;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::string line = read_all(entry.path() / "cmdline");
    for (char& c : line) {
      if (c == '\0') c = ' ';
    }
    const pid_t pid = static_cast<pid_t>(std::stoi(name));
    if (pid != ::getpid() && line.find(text) != std::string::npos) found.push_back(pid);
  }
  return found;
}

/// Processes that work in this folder: a run's children inherit it, so none may be left after the
/// run.
inline std::vector<pid_t> processes_in(const fs::path& folder) {
  std::vector<pid_t> found;
  for (const pid_t pid : processes_with("")) {
    std::error_code gone;
    if (fs::read_symlink(fmt::format("/proc/{}/cwd", pid), gone) == folder) found.push_back(pid);
  }
  return found;
}

/// What a program that was stopped half-way must not leave in a folder: "x.123.tmp", ".step-8.tmp".
inline std::vector<std::string> half_made(const fs::path& folder) {
  std::vector<std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.path().extension() == ".tmp") found.push_back(entry.path());
  }
  return found;
}

/// The loss of each step of a site, exactly as written.
inline std::vector<std::string> loss_curve(const fs::path& run, const std::string& site) {
  std::vector<std::string> curve;
  std::ifstream in(run / "metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (json.is_discarded() || json.value("kind", "") != "step" || json.value("site", "") != site)
      continue;
    const auto step = json["step"].get<size_t>();
    if (curve.size() < step) curve.resize(step);
    curve[step - 1] = json["loss"].dump();  // a resumed run writes its repeated steps again
  }
  return curve;
}

}  // namespace pelago::testing
