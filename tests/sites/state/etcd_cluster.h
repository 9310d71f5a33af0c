// A real etcd on loopback, in memory where the machine has /dev/shm, whose members are killed and
// started again. Leaders are elected in half a second.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "free_ports.h"

namespace pelago::testing {

class EtcdCluster {
 public:
  static constexpr int kMembers = 3;
  static constexpr const char* kNotInstalled =
      "skipped: etcd is not installed; scripts/install-packages does it";

  static bool is_installed() {
    for (const char* dir : {"/usr/bin", "/usr/local/bin"}) {
      if (::access((std::string(dir) + "/etcd").c_str(), X_OK) == 0) return true;
    }
    return false;
  }

  EtcdCluster() : EtcdCluster(kMembers, {}) { wait_for_leader(); }
  /// certs_dir: etcd.pem, etcd.key and ca.pem; members speak TLS and want certificates of
  /// that authority. Empty: plain. Does not wait for a leader.
  EtcdCluster(int num_members, std::filesystem::path certs_dir) : certs_dir_(std::move(certs_dir)) {
    namespace fs = std::filesystem;
    const fs::path base = fs::exists("/dev/shm") ? "/dev/shm" : fs::temp_directory_path().c_str();
    dir_ = base / fmt::format("pelago-etcd-{}{}", ::getpid(), certs_dir_.empty() ? "" : "-tls");
    fs::remove_all(dir_);
    fs::create_directories(dir_);
    const std::vector<int> ports = free_ports(2 * num_members);
    for (size_t i = 0; i < static_cast<size_t>(num_members); ++i) {
      const size_t peer = i + static_cast<size_t>(num_members);
      members_.push_back({.client_port = ports[i], .peer_port = ports[peer], .pid = -1});
    }
    for (int i = 0; i < num_members; ++i) start(i);
  }
  ~EtcdCluster() {
    for (size_t i = 0; i < members_.size(); ++i) {
      if (members_[i].pid > 0) kill(static_cast<int>(i));
    }
    std::error_code ignored;
    std::filesystem::remove_all(dir_, ignored);
  }
  EtcdCluster(const EtcdCluster&) = delete;
  EtcdCluster& operator=(const EtcdCluster&) = delete;

  /// "etcd://127.0.0.1:A,127.0.0.1:B,127.0.0.1:C/PREFIX", or etcds://...
  std::string url(const std::string& prefix) const {
    std::string hosts;
    for (const Member& member : members_) {
      hosts += fmt::format("{}127.0.0.1:{}", hosts.empty() ? "" : ",", member.client_port);
    }
    return fmt::format("{}://{}/{}", certs_dir_.empty() ? "etcd" : "etcds", hosts, prefix);
  }

  /// The member that the others follow; waits for there to be one that answers.
  int wait_for_leader(double timeout_s = 60) const {
    const auto deadline =
        std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_s);
    while (std::chrono::steady_clock::now() < deadline) {
      for (int i = 0; i < kMembers; ++i) {
        const nlohmann::json status = ask(i, "maintenance/status", "{}");
        const bool is_leader = status.is_object() && status.contains("leader") &&
                               status["leader"] == status["header"]["member_id"];
        if (is_leader && ask(i, "kv/range", R"({"key":"YQ=="})").contains("header")) return i;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    throw std::runtime_error("etcd has no leader; see " + dir_.string());
  }

  void start(int idx) {
    Member& member = members_[static_cast<size_t>(idx)];
    std::string cluster;
    for (size_t i = 0; i < members_.size(); ++i) {
      cluster +=
          fmt::format("{}m{}=http://127.0.0.1:{}", i == 0 ? "" : ",", i, members_[i].peer_port);
    }
    const std::string client =
        fmt::format("{}://127.0.0.1:{}", certs_dir_.empty() ? "http" : "https", member.client_port);
    const std::string peer = fmt::format("http://127.0.0.1:{}", member.peer_port);
    const std::string name = fmt::format("m{}", idx);
    std::vector<std::string> arguments = {"etcd", "--name", name};
    for (const auto& [option, value] : std::vector<std::pair<std::string, std::string>>{
             {"--data-dir", (dir_ / name).string()},
             {"--listen-client-urls", client},
             {"--advertise-client-urls", client},
             {"--listen-peer-urls", peer},
             {"--initial-advertise-peer-urls", peer},
             {"--initial-cluster", cluster},
             {"--initial-cluster-token", dir_.filename()},
             {"--heartbeat-interval", "50"},
             {"--election-timeout", "500"}}) {
      arguments.push_back(option);
      arguments.push_back(value);
    }
    if (!certs_dir_.empty()) {
      for (const auto& [option, name_of_file] : {std::pair("--cert-file", "etcd.pem"),
                                                 std::pair("--key-file", "etcd.key"),
                                                 std::pair("--trusted-ca-file", "ca.pem")}) {
        arguments.push_back(option);
        arguments.push_back(certs_dir_ / name_of_file);
      }
      arguments.push_back("--client-cert-auth");
    }
    const std::string log = (dir_ / (name + ".log")).string();
    member.pid = ::fork();
    if (member.pid != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int file = ::open(log.c_str(), O_CREAT | O_APPEND | O_WRONLY, 0600);
    ::dup2(file, 1);
    ::dup2(file, 2);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    ::execvp("etcd", argv.data());
    ::_exit(127);
  }

  void restart_if_dead(int idx) {
    if (members_[static_cast<size_t>(idx)].pid < 0) start(idx);
  }

  /// kill -9. Returns the signal that it died of.
  int kill(int idx) {
    Member& member = members_[static_cast<size_t>(idx)];
    int status = 0;
    ::kill(member.pid, SIGKILL);
    ::waitpid(member.pid, &status, 0);
    member.pid = -1;
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  }

  /// POST /v3/path at one member; null if it does not answer.
  nlohmann::json ask(int idx, const std::string& path, const std::string& body) const {
    const int port = members_[static_cast<size_t>(idx)].client_port;
    const int line = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const timeval limit{.tv_sec = 1, .tv_usec = 0};
    ::setsockopt(line, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    const sockaddr_in address = loopback(port);
    std::string answer;
    if (::connect(line, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
      const std::string request = fmt::format(
          "POST /v3/{} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{}", path, body.size(), body);
      (void)::send(line, request.data(), request.size(), MSG_NOSIGNAL);
      char buffer[4096];
      for (ssize_t got = 0; (got = ::recv(line, buffer, sizeof(buffer), 0)) > 0;) {
        answer.append(buffer, static_cast<size_t>(got));
      }
    }
    ::close(line);
    const size_t begin = answer.find("\r\n\r\n");
    if (begin == std::string::npos) return nullptr;
    const auto json = nlohmann::json::parse(answer.substr(begin + 4), nullptr, false);
    return json.is_discarded() ? nlohmann::json(nullptr) : json;
  }

 private:
  struct Member {
    int client_port, peer_port;
    pid_t pid;
  };

  static sockaddr_in loopback(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }

  std::filesystem::path dir_, certs_dir_;
  std::vector<Member> members_;
};

}  // namespace pelago::testing
