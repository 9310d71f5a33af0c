#include "sites/transport/line_sockets.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>

namespace pelago::sites {

namespace {

uint16_t peer_port(int socket) {
  sockaddr_storage peer{};
  socklen_t num_bytes = sizeof peer;
  if (::getpeername(socket, reinterpret_cast<sockaddr*>(&peer), &num_bytes) != 0) return 0;
  if (peer.ss_family == AF_INET) return ntohs(reinterpret_cast<sockaddr_in*>(&peer)->sin_port);
  if (peer.ss_family == AF_INET6) return ntohs(reinterpret_cast<sockaddr_in6*>(&peer)->sin6_port);
  return 0;
}

// What the kernel refuses stays as it was: the line is then slower, not broken.
void tune(int socket) {
  constexpr char kBbr[] = "bbr";
  ::setsockopt(socket, IPPROTO_TCP, TCP_CONGESTION, kBbr, sizeof kBbr - 1);
  // Any bound but the default one turns pacing on, for CUBIC as well; this one is never reached.
  const uint32_t pacing_bytes_s = 2'000'000'000;
  ::setsockopt(socket, SOL_SOCKET, SO_MAX_PACING_RATE, &pacing_bytes_s, sizeof pacing_bytes_s);
  const int unsent_bytes_max = 256 << 10;
  ::setsockopt(socket, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent_bytes_max, sizeof unsent_bytes_max);
}

}  // namespace

int tune_line_sockets(const std::string& address) {
  const auto port =
      static_cast<uint16_t>(std::strtoul(address.c_str() + address.rfind(':') + 1, nullptr, 10));
  int num_tuned = 0;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", ignored)) {
    const int socket = std::atoi(entry.path().filename().c_str());
    if (port == 0 || peer_port(socket) != port) continue;
    tune(socket);
    ++num_tuned;
  }
  return num_tuned;
}

}  // namespace pelago::sites
