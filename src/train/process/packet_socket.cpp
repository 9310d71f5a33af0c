#include "train/process/packet_socket.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace pelago::train {

PacketSocket& PacketSocket::operator=(PacketSocket&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

PacketSocket::~PacketSocket() { close(); }

std::pair<PacketSocket, PacketSocket> PacketSocket::make_pair() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    fail("cannot make a socket pair for a worker: {}", std::strerror(errno));
  }
  return {PacketSocket(ends[0]), PacketSocket(ends[1])};
}

bool PacketSocket::send(std::string_view packet) {
  PELAGO_ASSERT(packet.size() <= kPacketBytesMax, "weights and lists do not go through packets");
  while (true) {
    const ssize_t sent = ::send(descriptor_, packet.data(), packet.size(), MSG_NOSIGNAL);
    if (sent >= 0) return true;
    if (errno != EINTR) return false;
  }
}

std::optional<std::string> PacketSocket::receive() {
  std::string packet(kPacketBytesMax, '\0');
  while (true) {
    const ssize_t got = ::recv(descriptor_, packet.data(), packet.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return std::nullopt;
    packet.resize(static_cast<size_t>(got));
    return packet;
  }
}

bool PacketSocket::is_at_end() const {
  char first = 0;
  return ::recv(descriptor_, &first, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

void PacketSocket::shut_down() { ::shutdown(descriptor_, SHUT_RDWR); }

void PacketSocket::close() {
  if (descriptor_ >= 0) ::close(descriptor_);
  descriptor_ = -1;
}

}  // namespace pelago::train
