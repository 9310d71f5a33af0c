// A client as rude as a test wants it: bytes over a socket of loopback, nothing else.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace pelago::serve {

class RawClient {
 public:
  explicit RawClient(int port) : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      throw std::runtime_error("cannot connect to the server under test");
    }
  }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;
  ~RawClient() { close(); }

  void close() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
  }
  /// Sends as much as the server takes; a server that hung up is no error here.
  void send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
  }
  /// Reads until what was read contains text; returns all that was read so far. If the server hangs
  /// up or says nothing for a minute first, returns what there is.
  const std::string& read_until(std::string_view text, size_t from = 0) {
    while (seen_.find(text, from) == std::string::npos && read_more()) {
    }
    return seen_;
  }
  /// One response with a Content-Length, head and body.
  std::string read_response() {
    read_until("\r\n\r\n");
    const size_t head = seen_.find("\r\n\r\n");
    if (head == std::string::npos) return std::move(seen_);
    const size_t field = seen_.find("Content-Length: ");
    const size_t length = field < head ? std::stoul(seen_.substr(field + 16)) : 0;
    while (seen_.size() < head + 4 + length && read_more()) {
    }
    std::string response = seen_.substr(0, head + 4 + length);
    seen_.erase(0, response.size());
    return response;
  }
  /// All until the server hangs up.
  std::string read_all() {
    while (read_more()) {
    }
    return std::move(seen_);
  }
  /// True once the server has hung up (waits for it).
  bool is_cut() {
    while (read_more()) {
    }
    return is_cut_;
  }

 private:
  bool read_more() {
    pollfd waiting{.fd = socket_, .events = POLLIN, .revents = 0};
    if (::poll(&waiting, 1, 60000) != 1) return false;
    char bytes[65536];
    const ssize_t num_read = ::recv(socket_, bytes, sizeof bytes, 0);
    is_cut_ = num_read <= 0;
    if (is_cut_) return false;
    seen_.append(bytes, static_cast<size_t>(num_read));
    return true;
  }

  int socket_;
  std::string seen_;
  bool is_cut_ = false;
};

}  // namespace pelago::serve
