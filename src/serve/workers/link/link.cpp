#include "serve/workers/link/link.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace pelago::serve {

Link::Link(int socket)
    : socket_(socket), thread_([this](const std::stop_token& stop) { write_unsent(stop); }) {}

Link::~Link() {
  shut();
  thread_.request_stop();
  thread_.join();
  ::close(socket_);
}

bool Link::send(const Message& message) {
  std::string frame = frame_of(message);
  if (frame.size() > kFrameBytesMax) return false;
  const std::lock_guard lock(mutex_);
  if (is_shut_ || unsent_.size() + num_writing_ > kUnsentBytesMax) return false;
  size_t num_sent = 0;
  if (unsent_.empty() && num_writing_ == 0) {
    const ssize_t sent = ::send(socket_, frame.data(), frame.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) return false;
    num_sent = static_cast<size_t>(std::max<ssize_t>(sent, 0));
  }
  if (num_sent == frame.size()) return true;
  unsent_.append(frame, num_sent);
  changed_.notify_one();
  return true;
}

void Link::write_unsent(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, stop, [this] { return !unsent_.empty(); });
    if (stop.stop_requested() || is_shut_) return;
    const std::string bytes = std::exchange(unsent_, {});
    num_writing_ = bytes.size();
    lock.unlock();
    for (size_t at = 0; at < bytes.size();) {
      const ssize_t sent = ::send(socket_, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) continue;
      if (sent <= 0) break;  // read() tells that the other end is gone
      at += static_cast<size_t>(sent);
    }
    lock.lock();
    num_writing_ = 0;
  }
}

std::string Link::read(const std::function<void(Message)>& on_message) {
  std::string bytes;
  size_t taken = 0;
  while (true) {
    while (bytes.size() - taken >= kFrameHeadBytes) {
      uint32_t num_bytes = 0;
      std::memcpy(&num_bytes, bytes.data() + taken, sizeof num_bytes);
      if (num_bytes > kFrameBytesMax) return fmt::format("it sent a frame of {} bytes", num_bytes);
      if (bytes.size() - taken < kFrameHeadBytes + num_bytes) break;
      Result<Message> message =
          message_of(std::string_view(bytes).substr(taken + kFrameHeadBytes, num_bytes));
      if (!message) return message.error().message;
      taken += kFrameHeadBytes + num_bytes;
      on_message(std::move(*message));
    }
    bytes.erase(0, std::exchange(taken, 0));
    const size_t num_before = bytes.size();
    constexpr size_t kReadBytes = 64 << 10;
    bytes.resize(num_before + kReadBytes);
    const ssize_t num_read = ::recv(socket_, bytes.data() + num_before, kReadBytes, 0);
    if (num_read < 0 && errno != EINTR) return std::strerror(errno);
    if (num_read == 0) return "the other end is gone";
    bytes.resize(num_before + static_cast<size_t>(std::max<ssize_t>(num_read, 0)));
  }
}

void Link::shut() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(is_shut_, true)) return;
  ::shutdown(socket_, SHUT_RDWR);
}

std::pair<int, int> make_link_sockets() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    fail("cannot make a socket for a worker: {}", std::strerror(errno));
  }
  return {ends[0], ends[1]};
}

}  // namespace pelago::serve
