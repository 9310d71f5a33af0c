// The answer of one connection on its way out: replies fill it from any thread, the thread that
// carries the bytes empties it. Each request of the connection has a number, so that a reply that
// outlives its request does nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "serve/http/messages.h"

namespace pelago::serve {

class Outbox {
 public:
  struct Options {
    size_t unread_bytes_max = 0;
    const std::atomic<bool>* is_draining = nullptr;  // outlives this: answers then say "close"
    std::function<void()> wake;  // take() has something to do; called under this object's lock
    std::function<void()> cut;   // the connection is to end; likewise
  };
  explicit Outbox(Options options) : options_(std::move(options)) {}

  struct Request {
    bool is_head = false;  // HEAD: no body
    bool is_old = false;   // HTTP/1.0: streams end with the connection, not in chunks
    bool closes = false;   // after the answer
  };
  /// A new request, after the answer to the last one is complete. Returns its number.
  uint64_t open(const Request& request);
  /// "100 Continue", before open().
  void encourage();

  /// Takes what is to be sent into out, which is empty. Returns true once there is nothing left and
  /// the answer is complete.
  bool take(std::string& out);
  void sent(size_t num_bytes);
  bool closes() const;
  /// The client is gone. Returns what on_gone() asked for, to be called without locks; may be null.
  std::function<void()> close();

  // As in HttpReply, for the request with this number.
  void send(uint64_t request_idx, const HttpResponse& response);
  void begin(uint64_t request_idx, const HttpResponse& head);
  bool write(uint64_t request_idx, std::string_view piece);
  void end(uint64_t request_idx);
  void cut(uint64_t request_idx);
  void on_gone(uint64_t request_idx, std::function<void()> callback);
  /// The reply is dropped: answers unanswered if nothing was sent, cuts a stream.
  void drop(uint64_t request_idx, const std::function<HttpResponse()>& unanswered);

 private:
  enum class Answer { kNone, kStreaming, kComplete };
  void put(std::string_view text);
  void wake();

  const Options options_;
  mutable std::mutex mutex_;  // guards what follows
  uint64_t request_idx_ = 0;
  Request request_;
  Answer answer_ = Answer::kComplete;
  std::string waiting_;
  size_t unread_bytes_ = 0;  // in waiting_, and taken but not sent
  bool is_gone_ = false, is_awake_ = false;
  std::function<void()> gone_;
};

/// The reply to one request. shared: owners are this, the server and its operations. server: what
/// the outbox needs to live. unanswered: the answer if the reply is dropped without one.
HttpReplyPtr reply_over(std::shared_ptr<Outbox> outbox,
                        uint64_t request_idx,
                        std::shared_ptr<void> server,
                        std::function<HttpResponse()> unanswered);

}  // namespace pelago::serve
