// Clients of a server, all in one thread: each opens a connection, asks for a streamed completion
// and notes when its tokens come. Requests start at times of their own (an open loop) or as soon as
// one of so many clients is free (a closed loop).
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/rng.h"

namespace pelago::bench {

/// One request to come.
struct Ask {
  double at_s = 0;  // after the load's begin; a closed loop starts it then or later
  size_t num_prompt = 128, num_new = 64;
};

/// What became of one.
struct Told {
  int status = 0;  // 0: the line broke
  bool has_retry_after = false;
  double begin_s = 0, first_s = 0, last_s = 0, end_s = 0;  // of the load's clock
  size_t num_tokens = 0;
  double ttft_s() const { return first_s - begin_s; }
  double tpot_s() const {
    return num_tokens < 2 ? 0 : (last_s - first_s) / static_cast<double>(num_tokens - 1);
  }
  bool is_served() const { return status == 200 && num_tokens > 0; }
};

/// The body of a request for exactly so many tokens, whose prompt nothing else begins with.
inline std::string completion_body(const Ask& ask, Rng rng) {
  std::string prompt;
  for (size_t idx = 0; idx < ask.num_prompt; ++idx) {
    prompt += fmt::format("{}{}", idx == 0 ? "" : ",", 256 + rng.next_below(31000));
  }
  return fmt::format(
      R"({{"prompt":[{}],"max_tokens":{},"ignore_eos":true,"stream":true,"seed":{}}})",
      prompt,
      ask.num_new,
      rng.next_below(1 << 30));
}

/// One connection with one request.
class LoadClient {
 public:
  LoadClient(int port, const std::string& body, Told& told, double now_s)
      : told_(&told),
        out_(fmt::format("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                         "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
                         body.size(),
                         body)),
        socket_(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) {
    told.begin_s = now_s;
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int is_prompt = 1;
    ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &is_prompt, sizeof is_prompt);
    ::connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address);
  }
  LoadClient(const LoadClient&) = delete;
  LoadClient& operator=(const LoadClient&) = delete;
  ~LoadClient() { ::close(socket_); }

  pollfd wish() const {
    return {socket_, static_cast<int16_t>(out_.empty() ? POLLIN : POLLIN | POLLOUT), 0};
  }
  /// Does what can be done now. False once the answer is complete or the line broken.
  bool go_on(int16_t ready, double now_s) {
    if ((ready & POLLOUT) != 0 && !out_.empty()) {
      const ssize_t sent = ::send(socket_, out_.data(), out_.size(), MSG_NOSIGNAL);
      if (sent > 0) out_.erase(0, static_cast<size_t>(sent));
    }
    if ((ready & (POLLIN | POLLHUP | POLLERR)) == 0) return true;
    char buffer[16384];
    const ssize_t got = ::recv(socket_, buffer, sizeof buffer, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (got <= 0) {
      told_->end_s = now_s;
      return false;
    }
    in_.append(buffer, static_cast<size_t>(got));
    read_lines(now_s);
    return true;
  }

 private:
  // Every token has a text of its own, so each comes as an event of its own.
  void read_lines(double now_s) {
    size_t begin = 0;
    for (size_t end = 0; (end = in_.find('\n', begin)) != std::string::npos; begin = end + 1) {
      const std::string_view line = std::string_view(in_).substr(begin, end - begin);
      if (told_->status == 0 && line.starts_with("HTTP/1.1 ")) {
        told_->status = std::atoi(std::string(line.substr(9, 3)).c_str());
      }
      if (line.starts_with("Retry-After:")) told_->has_retry_after = true;
      if (!line.starts_with("data: {") || line.find(R"("text":"")") != std::string_view::npos) {
        continue;
      }
      if (told_->num_tokens++ == 0) told_->first_s = now_s;
      told_->last_s = now_s;
    }
    in_.erase(0, begin);
  }

  Told* told_;  // outlives me
  std::string out_, in_;
  int socket_;
};

struct LoadLimits {
  size_t num_clients = 1 << 20;  // at once
  double until_s = 1e9;          // then those under way are left, and nothing new is begun
};

/// Asks all, in the order of their times, and returns what became of each. on_tick is called about
/// ten times a second.
template <typename OnTick>
std::vector<Told> ask_all(
    int port, const std::vector<Ask>& asks, const LoadLimits& limits, Rng rng, OnTick on_tick) {
  std::vector<Told> told(asks.size());
  std::vector<std::unique_ptr<LoadClient>> clients;
  std::vector<pollfd> wishes;
  const double begin_s = steady_now_s();
  size_t next = 0;
  double tick_s = 0;
  while (next < asks.size() || !clients.empty()) {
    const double now_s = steady_now_s() - begin_s;
    if (now_s >= limits.until_s) break;
    while (next < asks.size() && asks[next].at_s <= now_s && clients.size() < limits.num_clients) {
      clients.push_back(std::make_unique<LoadClient>(
          port, completion_body(asks[next], rng.fork("ask", next)), told[next], now_s));
      ++next;
    }
    wishes.clear();
    for (const auto& client : clients) wishes.push_back(client->wish());
    double wait_s = 0.1;
    if (next < asks.size() && clients.size() < limits.num_clients) {
      wait_s = std::clamp(asks[next].at_s - now_s, 0.0, wait_s);
    }
    ::poll(wishes.data(), wishes.size(), static_cast<int>(std::ceil(1e3 * wait_s)));
    const double seen_s = steady_now_s() - begin_s;
    for (size_t idx = clients.size(); idx-- > 0;) {
      if (wishes[idx].revents != 0 && !clients[idx]->go_on(wishes[idx].revents, seen_s)) {
        clients.erase(clients.begin() + static_cast<std::ptrdiff_t>(idx));
      }
    }
    if (seen_s >= tick_s) {
      on_tick(seen_s);
      tick_s = seen_s + 0.1;
    }
  }
  return told;
}

}  // namespace pelago::bench
