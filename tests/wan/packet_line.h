// A packet-level line for tests and benchmarks: the script beside this file, held open as long as
// this object lives. The script ends, and takes the namespaces with it, when its input closes, so
// that nothing is left behind even if this process is killed.
#pragma once

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace pelago::wan {

struct PacketLineOptions {
  int num_sites = 2;
  std::string rate_mbit = "100";  // "R" or "R:BACK"
  double rtt_ms = 60;
  std::string loss_percent = "0.1";  // "L" or "L:BACK"
};

class PacketLine {
 public:
  /// Why this machine cannot have such a line, or nothing.
  static std::optional<std::string> obstacle() {
    if (::geteuid() != 0) return "needs root";
    if (std::system("command -v wirefilter vde_switch ip >/dev/null 2>&1") != 0) {
      return "needs wirefilter: install vde2 and iproute2";
    }
    return std::nullopt;
  }

  /// Throws Failure with the script's words if the line cannot be built.
  explicit PacketLine(const PacketLineOptions& options)
      : name_("pelago-" + std::to_string(::getpid()) + "-" + std::to_string(++num_made())) {
    start({PELAGO_PACKET_LINE,
           "--name",
           name_,
           "--sites",
           std::to_string(options.num_sites),
           "--rate-mbit",
           options.rate_mbit,
           "--rtt-ms",
           std::to_string(options.rtt_ms),
           "--loss-percent",
           options.loss_percent});
    if (read_line() != "ready") {
      close();
      fail("{}: the packet-level line was not built", PELAGO_PACKET_LINE);
    }
  }
  PacketLine(const PacketLine&) = delete;
  PacketLine& operator=(const PacketLine&) = delete;
  ~PacketLine() { close(); }

  std::string address(int site) const { return "10.77.0." + std::to_string(site + 1); }
  std::string space(int site) const { return name_ + "-" + std::to_string(site); }
  /// Words before a command that is to run at this site.
  std::string at(int site) const { return "ip netns exec " + space(site) + " "; }

  /// An order of the script: "cut 1", "heal 1", "loss 5", ... Throws Failure if it is refused.
  std::string order(const std::string& words) {
    const std::string line = words + "\n";
    const bool written =
        ::write(to_, line.data(), line.size()) == static_cast<ssize_t>(line.size());
    const std::string answer = written ? read_line() : "";
    if (!answer.starts_with("done")) fail("packet line: {}: {}", words, answer);
    return answer.substr(std::min<size_t>(answer.size(), 5));
  }

  /// Bytes that have left a site, headers down to Ethernet's included.
  int64_t sent_bytes(int site) { return std::stoll(order("sent " + std::to_string(site))); }

 private:
  static int& num_made() {
    static int made = 0;
    return made;
  }

  void start(std::vector<std::string> words) {
    std::array<int, 2> in{}, out{};
    if (::pipe2(in.data(), O_CLOEXEC) != 0 || ::pipe2(out.data(), O_CLOEXEC) != 0) {
      fail("packet line: no pipe");
    }
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    ::posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    const int refused =
        ::posix_spawn(&pid_, arguments[0], &actions, nullptr, arguments.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(in[0]);
    ::close(out[1]);
    to_ = in[1];
    from_ = out[0];
    if (refused != 0) pid_ = -1;
  }

  std::string read_line() {
    std::string line;
    for (char letter = 0; ::read(from_, &letter, 1) == 1 && letter != '\n';) line += letter;
    return line;
  }

  void close() {
    ::close(to_);
    if (pid_ > 0) ::waitpid(pid_, nullptr, 0);
    ::close(from_);
  }

  std::string name_;
  pid_t pid_ = -1;
  int to_ = -1, from_ = -1;
};

}  // namespace pelago::wan
