// One end of the socket between a router and a worker: frames out without waiting, frames in on a
// thread of the owner. Whoever stops reading is noticed by what lies unsent, not by a writer that
// hangs.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "serve/workers/link/messages.h"

namespace pelago::serve {

class Link {
 public:
  static constexpr size_t kUnsentBytesMax = size_t{64} << 20;  // beside one frame of any size

  /// Takes over a stream socket.
  explicit Link(int socket);
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;
  ~Link();

  /// Any thread, never blocks: what the socket does not take at once follows by itself. False if
  /// the other end is gone, or reads so slowly that too much lies unsent: it will not get this.
  bool send(const Message& message);
  /// Calls on_message for each message until the other end is gone, shut() was called or something
  /// came that is no message. To be called by one thread, once. Returns why it ended.
  std::string read(const std::function<void(Message)>& on_message);
  /// Ends the link in both directions; read() returns.
  void shut();

 private:
  void write_unsent(const std::stop_token& stop);

  const int socket_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable_any changed_;
  std::string unsent_;
  size_t num_writing_ = 0;  // bytes that the thread is sending
  bool is_shut_ = false;
  std::jthread thread_;  // last: it uses everything above
};

/// Two ends of a new link. Throws Failure if the system has no more sockets.
std::pair<int, int> make_link_sockets();

}  // namespace pelago::serve
