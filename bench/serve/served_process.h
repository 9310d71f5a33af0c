// The built program serving a model, as a user would start it, on a free port of this machine.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/files.h"

namespace pelago::bench {

/// `pelago serve ARGUMENTS --port 0`; ended with the object.
class ServedProcess {
 public:
  explicit ServedProcess(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(),
                     {(program_path().parent_path() / "pelago").string(), "serve"});
    for (const char* more : {"--port", "0", "--json", "--no-page"}) arguments.emplace_back(more);
    std::vector<char*> words;
    for (std::string& argument : arguments) words.push_back(argument.data());
    words.push_back(nullptr);
    int out[2];
    if (::pipe2(out, O_CLOEXEC) != 0) fail("no pipe to be had");
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    const int error = ::posix_spawn(&pid_, words[0], &actions, nullptr, words.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(out[1]);
    if (error != 0) fail("cannot start {}", arguments[0]);
    std::string said;
    for (char c = 0; c != '\n' && ::read(out[0], &c, 1) == 1;) said += c;
    ::close(out[0]);
    const auto json = nlohmann::json::parse(said, nullptr, false);
    if (!json.is_object()) fail("pelago serve did not start; it said \"{}\"", said);
    const std::string url = json["url"].get<std::string>();
    port_ = std::stoi(url.substr(url.rfind(':') + 1));
  }
  ServedProcess(const ServedProcess&) = delete;
  ServedProcess& operator=(const ServedProcess&) = delete;
  ~ServedProcess() {
    for (const int how : {SIGTERM, SIGTERM}) ::kill(pid_, how);  // the second one: at once
    ::waitpid(pid_, nullptr, 0);
  }

  int port() const { return port_; }
  double resident_mb() const { return status_kb("VmRSS:") / 1024; }
  /// Seconds of processor time since the start.
  double busy_s() const {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/stat");
    std::string word;
    double ticks = 0;
    for (int idx = 1; idx <= 15 && file >> word; ++idx) {
      if (idx >= 14) ticks += std::stod(word);
    }
    return ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
  }

 private:
  double status_kb(const std::string& field) const {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/status");
    for (std::string word; file >> word;) {
      double value = 0;
      if (word == field && file >> value) return value;
    }
    return 0;
  }

  pid_t pid_ = 0;
  int port_ = 0;
};

}  // namespace pelago::bench
