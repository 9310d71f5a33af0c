// Ports for programs under test that must come back at the same place.
#pragma once

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <vector>

namespace pelago::testing {

/// Ports of loopback that are free now and that nobody takes by chance: below 32768, where Linux
/// begins to give ports to whoever asks for any. Each process looks from a place of its own on, and
/// never gives one twice.
inline std::vector<int> free_ports(int count) {
  constexpr int kFirst = 15000, kPorts = 17000;
  static int next = static_cast<int>(static_cast<long>(::getpid()) * 97 % kPorts);
  std::vector<int> ports;
  for (int tried = 0; tried < kPorts && ports.size() < static_cast<size_t>(count); ++tried) {
    const int port = kFirst + next;
    next = (next + 1) % kPorts;
    const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::bind(socket, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
      ports.push_back(port);
    }
    ::close(socket);
  }
  return ports;
}

}  // namespace pelago::testing
