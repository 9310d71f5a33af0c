#include "sites/transport/line_sockets.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>

namespace pelago::sites {

namespace {

struct Peer {
  uint16_t port = 0;  // 0: no connection
  bool is_here = false;
};

Peer peer_of(int socket) {
  sockaddr_storage peer{};
  socklen_t num_bytes = sizeof peer;
  if (::getpeername(socket, reinterpret_cast<sockaddr*>(&peer), &num_bytes) != 0) return {};
  if (peer.ss_family == AF_INET) {
    const auto* known = reinterpret_cast<sockaddr_in*>(&peer);
    return {.port = ntohs(known->sin_port),
            .is_here = ntohl(known->sin_addr.s_addr) >> 24U == IN_LOOPBACKNET};
  }
  if (peer.ss_family == AF_INET6) {
    const auto* known = reinterpret_cast<sockaddr_in6*>(&peer);
    return {.port = ntohs(known->sin6_port),
            .is_here = IN6_IS_ADDR_LOOPBACK(&known->sin6_addr) != 0};
  }
  return {};
}

// What the kernel refuses stays as it was: the line is then slower, not broken.
void tune(int socket, std::optional<double> pace_mbit_s) {
  constexpr char kBbr[] = "bbr";
  ::setsockopt(socket, IPPROTO_TCP, TCP_CONGESTION, kBbr, sizeof kBbr - 1);
  // Any bound but the default one turns pacing on, for CUBIC as well; 2 GB/s is never reached.
  const auto pacing_bytes_s =
      static_cast<uint32_t>(std::min(2e9, pace_mbit_s.value_or(1e6) * 125e3));
  ::setsockopt(socket, SOL_SOCKET, SO_MAX_PACING_RATE, &pacing_bytes_s, sizeof pacing_bytes_s);
  const int unsent_bytes_max = 256 << 10;
  ::setsockopt(socket, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent_bytes_max, sizeof unsent_bytes_max);
}

}  // namespace

int tune_line_sockets(const std::string& address, std::optional<double> pace_mbit_s) {
  const auto port =
      static_cast<uint16_t>(std::strtoul(address.c_str() + address.rfind(':') + 1, nullptr, 10));
  int num_tuned = 0;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", ignored)) {
    const int socket = std::atoi(entry.path().filename().c_str());
    const Peer peer = peer_of(socket);
    if (port == 0 || peer.port != port) continue;
    // A site of the same machine is not behind the line that the plan speaks of.
    tune(socket, peer.is_here ? std::nullopt : pace_mbit_s);
    ++num_tuned;
  }
  return num_tuned;
}

}  // namespace pelago::sites
