#include "train/across/bridge_socket.h"

#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace pelago::train {

namespace {

bool read_all(int descriptor, void* to, size_t num_bytes) {
  auto* place = static_cast<char*>(to);
  while (num_bytes > 0) {
    const ssize_t got = ::read(descriptor, place, num_bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    place += got;
    num_bytes -= static_cast<size_t>(got);
  }
  return true;
}

}  // namespace

BridgeSocket& BridgeSocket::operator=(BridgeSocket&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

BridgeSocket::~BridgeSocket() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

std::pair<BridgeSocket, BridgeSocket> BridgeSocket::make_pair() {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    fail("no socket for a worker's line to other sites: {}", std::strerror(errno));
  }
  const int buffer_bytes = 1 << 20;  // the kernel takes what it allows
  for (const int end : ends) {
    ::setsockopt(end, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof buffer_bytes);
  }
  return {BridgeSocket(ends[0]), BridgeSocket(ends[1])};
}

bool BridgeSocket::write(const BridgeHeader& header, std::span<const std::byte> part) {
  PELAGO_ASSERT(part.size() == header.num_bytes && part.size() <= kBridgePartBytes,
                "messages are cut into parts before they are written");
  std::array<iovec, 2> pieces{
      iovec{const_cast<BridgeHeader*>(&header), sizeof header},
      iovec{const_cast<std::byte*>(part.data()), part.size()},
  };
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = pieces.size();
  size_t left = sizeof header + part.size();
  while (left > 0) {
    const ssize_t sent = ::sendmsg(descriptor_, &message, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    left -= static_cast<size_t>(sent);
    auto done = static_cast<size_t>(sent);
    for (iovec& piece : pieces) {
      const size_t taken = std::min(done, piece.iov_len);
      piece.iov_base = static_cast<char*>(piece.iov_base) + taken;
      piece.iov_len -= taken;
      done -= taken;
    }
  }
  return true;
}

bool BridgeSocket::read(BridgeHeader& header, std::string& part) {
  if (!read_all(descriptor_, &header, sizeof header)) return false;
  if (header.num_bytes > kBridgePartBytes) return false;
  part.resize(header.num_bytes);
  return read_all(descriptor_, part.data(), part.size());
}

void BridgeSocket::shut_down() { ::shutdown(descriptor_, SHUT_RDWR); }

}  // namespace pelago::train
