// What the server and its connections know of each other. Beast parses the requests; connections,
// limits and streams are ours. All state of a connection belongs to the one thread of the
// io_context, except for its outbox, which replies fill from other threads. Reading never stops
// while an answer is made: that is how a client's going is noticed.
//
//   kReading    a request is coming, or nothing is (idle: no byte of it has)
//   kAnswering  a handler has it; bytes of a next request wait in pending_
//   kLingering  the last answer is out; what the client still sends is read and dropped for a
//               moment, since closing with unread bytes would reset the line and lose the answer
//   kClosed
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <condition_variable>
#include <functional>
#include <limits>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "serve/http/http_server.h"
#include "serve/http/outbox.h"
#include "serve/http/routes.h"

namespace pelago::serve {

namespace asio = boost::asio;
using Tcp = asio::ip::tcp;
using SystemError = boost::system::error_code;
using IoDone = std::function<void(const SystemError&, size_t)>;

/// A connection's bytes, plain or encrypted.
class Line {
 public:
  virtual ~Line() = default;
  virtual void handshake(IoDone done) = 0;
  virtual void read_some(asio::mutable_buffer into, IoDone done) = 0;
  virtual void write_some(asio::const_buffer from, IoDone done) = 0;
  virtual Tcp::socket::lowest_layer_type& socket() = 0;
};

class Connection;

class HttpServerCore : public std::enable_shared_from_this<HttpServerCore> {
 public:
  explicit HttpServerCore(HttpServerOptions given)
      : options(std::move(given)), acceptor(io), timer(io), pause(io) {}

  HttpResponse error(int status, const std::string& message) const;
  void listen();
  void accept();
  void admit(Tcp::socket socket);
  bool evict_idle();
  void tick();
  void close_all(bool only_idle);
  void stop();

  const HttpServerOptions options;
  Routes routes;
  std::unique_ptr<asio::ssl::context> tls;
  asio::io_context io;
  Tcp::acceptor acceptor;
  asio::steady_timer timer, pause;
  size_t num_connections_max = 0;
  std::unique_ptr<asio::thread_pool> handlers;
  int port = 0;
  // Owned by the io thread.
  std::list<std::shared_ptr<Connection>> connections;  // owners: this, and their operations
  size_t all_bodies_bytes = 0;
  bool is_stopped = false;  // a tick that was due already must not set the timer again
  std::atomic<bool> is_draining = false;

  std::atomic<uint64_t> num_accepted = 0, num_requests = 0, num_refused = 0, num_evicted = 0;
  std::atomic<int64_t> num_active = 0;
  std::mutex open_mutex;  // guards num_open
  std::condition_variable open_changed;
  int64_t num_open = 0;
  std::jthread io_thread;
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(HttpServerCore& core, std::unique_ptr<Line> line, std::string peer);

  // On the io thread.
  void start();
  void check_deadline(double now_s);
  void close();
  bool is_idle() const { return state_ == State::kReading && !parser_->is_header_done(); }
  double idle_since_s() const { return idle_since_s_; }
  void refuse(int status, const std::string& message);
  std::list<std::shared_ptr<Connection>>::iterator place;

  /// Filled from any thread.
  Outbox outbox;

 private:
  enum class State { kReading, kAnswering, kLingering, kClosed };
  void read();
  void on_read(const SystemError& error, size_t num_bytes);
  void parse();
  void check_header();
  bool hold_body(size_t num_bytes);
  void release_body();
  void dispatch();
  void flush();
  void write_on();
  void finish_answer();
  void linger();

  HttpServerCore& core_;
  std::unique_ptr<Line> line_;
  const std::string peer_;
  State state_ = State::kReading;
  std::array<char, 8192> chunk_;
  std::string pending_;  // read, not parsed yet
  std::optional<boost::beast::http::request_parser<boost::beast::http::string_body>> parser_;
  size_t held_bytes_ = 0;  // of core_.all_bodies_bytes
  bool is_reading_ = false, is_writing_ = false;
  static constexpr double kNever = std::numeric_limits<double>::infinity();
  double deadline_s_ = kNever, write_deadline_s_ = kNever, idle_since_s_ = 0;
  std::string writing_;
  size_t num_written_ = 0;
};

}  // namespace pelago::serve
