// Beast parses the requests; connections, limits and streams are ours. All state of a connection
// belongs to the one thread of the io_context, except for its outbox, which replies fill from other
// threads. Reading never stops while an answer is made: that is how a client's going is noticed.
//
//   kReading    a request is coming, or nothing is (idle: no byte of it has)
//   kAnswering  a handler has it; bytes of a next request wait in pending_
//   kLingering  the last answer is out; what the client still sends is read and dropped for a
//               moment, since closing with unread bytes would reset the line and lose the answer
//   kClosed
#include "serve/http/http_server.h"

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <condition_variable>
#include <limits>
#include <list>
#include <map>
#include <mutex>
#include <thread>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "serve/http/outbox.h"
#include "serve/http/routes.h"

namespace pelago::serve {

namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using Tcp = asio::ip::tcp;
using SystemError = boost::system::error_code;
using IoDone = std::function<void(const SystemError&, size_t)>;
using Parser = http::request_parser<http::string_body>;

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kLinger_s = 2;                // as nginx's lingering_timeout, less than half
constexpr size_t kPendingBytesMax = 64 << 10;  // of next requests, while one is answered

/// A connection's bytes, plain or encrypted.
class Line {
 public:
  virtual ~Line() = default;
  virtual void handshake(IoDone done) = 0;
  virtual void read_some(asio::mutable_buffer into, IoDone done) = 0;
  virtual void write_some(asio::const_buffer from, IoDone done) = 0;
  virtual Tcp::socket::lowest_layer_type& socket() = 0;
};

using TlsStream = asio::ssl::stream<Tcp::socket>;

template <typename Stream>
class LineOver final : public Line {
 public:
  template <typename... Args>
  explicit LineOver(Args&&... args) : stream_(std::forward<Args>(args)...) {}
  void handshake(IoDone done) override {
    if constexpr (std::is_same_v<Stream, TlsStream>) {
      stream_.async_handshake(
          asio::ssl::stream_base::server,
          [done = std::move(done)](const SystemError& error) { done(error, 0); });
    } else {
      done({}, 0);
    }
  }
  void read_some(asio::mutable_buffer into, IoDone done) override {
    stream_.async_read_some(into, std::move(done));
  }
  void write_some(asio::const_buffer from, IoDone done) override {
    stream_.async_write_some(from, std::move(done));
  }
  Tcp::socket::lowest_layer_type& socket() override { return stream_.lowest_layer(); }

 private:
  Stream stream_;
};

class Connection;

}  // namespace

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

namespace {

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
  std::optional<Parser> parser_;
  size_t held_bytes_ = 0;  // of core_.all_bodies_bytes
  bool is_reading_ = false, is_writing_ = false;
  double deadline_s_ = kNever, write_deadline_s_ = kNever, idle_since_s_ = 0;
  std::string writing_;
  size_t num_written_ = 0;
};

}  // namespace

// ---- A connection ----

namespace {

Connection::Connection(HttpServerCore& core, std::unique_ptr<Line> line, std::string peer)
    : outbox(
          {.unread_bytes_max = core.options.unread_bytes_max,
           .is_draining = &core.is_draining,
           .wake = [this] { asio::post(core_.io, [self = shared_from_this()] { self->flush(); }); },
           .cut =
               [this] { asio::post(core_.io, [self = shared_from_this()] { self->close(); }); }}),
      core_(core),
      line_(std::move(line)),
      peer_(std::move(peer)) {
  parser_.emplace();
}

void Connection::start() {
  deadline_s_ = steady_now_s() + core_.options.header_deadline_s;
  line_->handshake([self = shared_from_this()](const SystemError& error, size_t) {
    if (error) return self->close();
    self->idle_since_s_ = steady_now_s();
    self->deadline_s_ = self->idle_since_s_ + self->core_.options.idle_s;
    self->read();
  });
}

void Connection::read() {
  if (is_reading_ || state_ == State::kClosed) return;
  is_reading_ = true;
  line_->read_some(asio::buffer(chunk_),
                   [self = shared_from_this()](const SystemError& error, size_t num_bytes) {
                     self->is_reading_ = false;
                     self->on_read(error, num_bytes);
                   });
}

void Connection::on_read(const SystemError& error, size_t num_bytes) {
  if (state_ == State::kClosed) return;
  if (error) return close();
  if (state_ == State::kLingering) return read();
  pending_.append(chunk_.data(), num_bytes);
  if (state_ == State::kReading) parse();
  const bool is_full = state_ == State::kAnswering && pending_.size() >= kPendingBytesMax;
  if (!is_full) read();
}

void Connection::parse() {
  if (pending_.empty()) return;
  const bool had_header = parser_->is_header_done();
  if (!had_header && deadline_s_ > steady_now_s() + core_.options.header_deadline_s) {
    deadline_s_ = steady_now_s() + core_.options.header_deadline_s;
  }
  parser_->eager(true);
  parser_->header_limit(static_cast<uint32_t>(core_.options.header_bytes_max));
  parser_->body_limit(core_.options.body_bytes_max);
  while (!pending_.empty() && !parser_->is_done()) {
    SystemError error;
    const size_t num_used = parser_->put(asio::buffer(pending_), error);
    pending_.erase(0, num_used);
    if (error == http::error::body_limit) {
      return refuse(413,
                    fmt::format("the body is longer than {} bytes", core_.options.body_bytes_max));
    }
    if (error == http::error::header_limit || pending_.size() > core_.options.header_bytes_max) {
      return refuse(
          431, fmt::format("the header is longer than {} bytes", core_.options.header_bytes_max));
    }
    if (error && error != http::error::need_more) {
      return refuse(400, "not an HTTP request: " + error.message());
    }
    if (error || num_used == 0) break;
  }
  if (!had_header && parser_->is_header_done()) check_header();
  if (!hold_body(parser_->get().body().size())) {
    return refuse(503, "too many large requests at once; try again later");
  }
  if (parser_->is_done()) dispatch();
}

void Connection::check_header() {
  deadline_s_ = steady_now_s() + core_.options.body_deadline_s;
  const auto expect = parser_->get()[http::field::expect];
  if (!parser_->is_done() && lower_case(std::string(expect)) == "100-continue") {
    outbox.encourage();
  }
}

// Counts a body's bytes as they come, over all connections. False if that is too many.
bool Connection::hold_body(size_t num_bytes) {
  core_.all_bodies_bytes += num_bytes - held_bytes_;
  held_bytes_ = num_bytes;
  return core_.all_bodies_bytes <= core_.options.all_bodies_bytes_max;
}

void Connection::release_body() {
  core_.all_bodies_bytes -= held_bytes_;
  held_bytes_ = 0;
}

void Connection::dispatch() {
  auto message = parser_->release();
  HttpRequest request;
  request.method = std::string(message.method_string());
  if (!split_target(std::string(message.target()), request)) {
    return refuse(400, "the path holds a broken escape");
  }
  for (const auto& field : message) {
    request.headers.emplace_back(lower_case(std::string(field.name_string())),
                                 std::string(field.value()));
  }
  request.body = std::move(message.body());
  request.peer = peer_;
  request.is_tls = core_.tls != nullptr;

  state_ = State::kAnswering;
  deadline_s_ = kNever;
  ++core_.num_active;
  ++core_.num_requests;
  const uint64_t idx = outbox.open({.is_head = request.method == "HEAD",
                                    .is_old = message.version() < 11,
                                    .closes = !message.keep_alive()});
  auto reply = reply_over({shared_from_this(), &outbox}, idx, core_.shared_from_this(), [this] {
    return core_.error(500, "this request could not be answered; see the server's log");
  });
  const auto [handler, allowed] = core_.routes.find(request.method, request.path);
  if (handler == nullptr) {
    HttpResponse response =
        allowed.empty()
            ? core_.error(404, fmt::format("nothing is at {}", request.path))
            : core_.error(405, fmt::format("{} does not take {}", request.path, request.method));
    if (!allowed.empty()) response.headers.emplace_back("Allow", allowed);
    release_body();
    return reply->send(std::move(response));
  }
  asio::post(*core_.handlers,
             [handler = handler,
              reply,
              self = shared_from_this(),
              request = std::move(request)]() mutable {
               try {
                 (*handler)(std::move(request), std::move(reply));
               } catch (const std::exception& error) {
                 log_error("http handler failed why=\"{}\"", error.what());
               }
               asio::post(self->core_.io, [self] { self->release_body(); });
             });
}

void Connection::refuse(int status, const std::string& message) {
  if (state_ == State::kReading) ++core_.num_active;
  state_ = State::kAnswering;
  deadline_s_ = kNever;
  release_body();
  ++core_.num_refused;
  const uint64_t idx = outbox.open({.closes = true});
  outbox.send(idx, core_.error(status, message));
}

void Connection::flush() {
  if (is_writing_ || state_ == State::kClosed) return;
  writing_.clear();
  const bool is_complete = outbox.take(writing_);
  num_written_ = 0;
  if (!writing_.empty()) {
    is_writing_ = true;
    write_on();
  } else if (is_complete && state_ == State::kAnswering) {
    finish_answer();
  }
}

void Connection::write_on() {
  write_deadline_s_ = steady_now_s() + core_.options.stall_s;
  line_->write_some(asio::buffer(writing_) + num_written_,
                    [self = shared_from_this()](const SystemError& error, size_t num_bytes) {
                      if (error) return self->close();
                      self->num_written_ += num_bytes;
                      self->outbox.sent(num_bytes);
                      if (self->num_written_ < self->writing_.size()) return self->write_on();
                      self->is_writing_ = false;
                      self->write_deadline_s_ = kNever;
                      self->flush();
                    });
}

void Connection::finish_answer() {
  --core_.num_active;
  if (outbox.closes()) return linger();
  state_ = State::kReading;
  parser_.emplace();
  idle_since_s_ = steady_now_s();
  deadline_s_ = idle_since_s_ + core_.options.idle_s;
  parse();
  read();
}

void Connection::linger() {
  SystemError ignored;
  state_ = State::kLingering;
  deadline_s_ = steady_now_s() + kLinger_s;
  pending_.clear();
  line_->socket().shutdown(Tcp::socket::shutdown_send, ignored);
  read();
}

void Connection::check_deadline(double now_s) {
  if (now_s >= write_deadline_s_) return close();
  if (now_s < deadline_s_) return;
  const bool has_begun = !pending_.empty() || parser_->is_header_done();
  if (state_ != State::kReading || !has_begun) return close();
  refuse(408, "the request did not come in time");
}

void Connection::close() {
  if (state_ == State::kClosed) return;
  if (state_ == State::kAnswering) --core_.num_active;
  state_ = State::kClosed;
  SystemError ignored;
  line_->socket().close(ignored);
  release_body();
  if (const auto gone = outbox.close()) gone();
  const auto self = shared_from_this();
  core_.connections.erase(place);
  const std::lock_guard lock(core_.open_mutex);
  --core_.num_open;
  core_.open_changed.notify_all();
}

}  // namespace

// ---- The server ----

HttpResponse HttpServerCore::error(int status, const std::string& message) const {
  if (options.error_response) return options.error_response(status, message);
  return {.status = status, .content_type = "text/plain; charset=utf-8", .body = message + '\n'};
}

void HttpServerCore::listen() {
  SystemError error;
  const auto address =
      asio::ip::make_address(options.host == "localhost" ? "127.0.0.1" : options.host, error);
  if (error) fail_usage("host {}: not an address, such as 127.0.0.1 or 0.0.0.0", options.host);
  const Tcp::endpoint endpoint(address, static_cast<uint16_t>(options.port));
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(Tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) {
    fail("cannot listen on {} port {}: {}; take another --port",
         options.host,
         options.port,
         error.message());
  }
  port = acceptor.local_endpoint().port();
  num_connections_max = options.num_connections_max;
  struct rlimit files {};
  // The engine's files, the log and the listening socket need some of them too.
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur != RLIM_INFINITY) {
    num_connections_max =
        std::min(num_connections_max, std::max<size_t>(8, files.rlim_cur * 3 / 4));
  }
}

void HttpServerCore::accept() {
  acceptor.async_accept([this](const SystemError& error, Tcp::socket socket) {
    if (!acceptor.is_open()) return;
    if (!error) {
      admit(std::move(socket));
      return accept();
    }
    // Out of file descriptors, most likely: an idle connection gives one back.
    evict_idle();
    pause.expires_after(std::chrono::milliseconds(100));
    pause.async_wait([this](const SystemError& stopped) {
      if (!stopped && acceptor.is_open()) accept();
    });
  });
}

void HttpServerCore::admit(Tcp::socket socket) {
  ++num_accepted;
  const bool has_room = connections.size() < num_connections_max || evict_idle();
  if (!has_room && (tls || connections.size() > num_connections_max + 64)) {
    ++num_refused;
    return;  // closes the socket
  }
  SystemError error;
  const Tcp::endpoint peer = socket.remote_endpoint(error);
  socket.set_option(Tcp::no_delay(true), error);
  std::unique_ptr<Line> line;
  if (tls) {
    line = std::make_unique<LineOver<TlsStream>>(std::move(socket), *tls);
  } else {
    line = std::make_unique<LineOver<Tcp::socket>>(std::move(socket));
  }
  auto connection =
      std::make_shared<Connection>(*this, std::move(line), peer.address().to_string());
  connection->place = connections.insert(connections.end(), connection);
  {
    const std::lock_guard lock(open_mutex);
    ++num_open;
  }
  if (has_room) return connection->start();
  connection->refuse(503, "all connections are in use; try again later");
}

bool HttpServerCore::evict_idle() {
  std::shared_ptr<Connection> oldest;
  for (const auto& connection : connections) {
    if (connection->is_idle() && (!oldest || connection->idle_since_s() < oldest->idle_since_s())) {
      oldest = connection;
    }
  }
  if (!oldest) return false;
  ++num_evicted;
  oldest->close();
  return true;
}

void HttpServerCore::tick() {
  if (is_stopped) return;
  const double now_s = steady_now_s();
  for (auto it = connections.begin(); it != connections.end();) {
    const auto connection = *it++;
    connection->check_deadline(now_s);
  }
  timer.expires_after(std::chrono::milliseconds(100));
  timer.async_wait([this](const SystemError& stopped) {
    if (!stopped) tick();
  });
}

void HttpServerCore::close_all(bool only_idle) {
  for (auto it = connections.begin(); it != connections.end();) {
    const auto connection = *it++;
    if (!only_idle || connection->is_idle()) connection->close();
  }
}

void HttpServerCore::stop() {
  if (!io_thread.joinable()) return;
  asio::post(io, [this] {
    SystemError ignored;
    is_stopped = is_draining = true;
    acceptor.close(ignored);
    timer.cancel();
    pause.cancel();
    close_all(false);
  });
  io_thread.join();
  handlers->stop();
  handlers->join();
}

HttpServer::HttpServer(HttpServerOptions options)
    : core_(std::make_shared<HttpServerCore>(std::move(options))) {}

HttpServer::~HttpServer() { core_->stop(); }

void HttpServer::route(const std::string& method, const std::string& path, HttpHandler handler) {
  PELAGO_ASSERT(core_->port == 0, "routes are read without a lock once the server has started");
  core_->routes.add(method, path, std::move(handler));
}

void HttpServer::start() {
  if (!core_->options.certificate_path.empty()) {
    SystemError error;
    core_->tls = std::make_unique<asio::ssl::context>(asio::ssl::context::tls_server);
    core_->tls->set_options(asio::ssl::context::no_tlsv1 | asio::ssl::context::no_tlsv1_1, error);
    core_->tls->use_certificate_chain_file(core_->options.certificate_path, error);
    if (error) fail_usage("{}: {}", core_->options.certificate_path, error.message());
    core_->tls->use_private_key_file(core_->options.key_path, asio::ssl::context::pem, error);
    if (error) fail_usage("{}: {}", core_->options.key_path, error.message());
  }
  core_->listen();
  core_->handlers =
      std::make_unique<asio::thread_pool>(static_cast<size_t>(core_->options.num_handler_threads));
  core_->accept();
  core_->tick();
  core_->io_thread = std::jthread([core = core_.get()] { core->io.run(); });
}

int HttpServer::port() const { return core_->port; }

bool HttpServer::drain(double deadline_s) {
  asio::post(core_->io, [core = core_] {
    SystemError ignored;
    core->is_draining = true;
    core->acceptor.close(ignored);
    core->close_all(true);
  });
  bool is_empty = false;
  {
    std::unique_lock lock(core_->open_mutex);
    is_empty = core_->open_changed.wait_for(
        lock, std::chrono::duration<double>(deadline_s), [&] { return core_->num_open == 0; });
  }
  core_->stop();
  return is_empty;
}

HttpServerStats HttpServer::stats() const {
  const std::lock_guard lock(core_->open_mutex);
  return {.num_accepted = core_->num_accepted,
          .num_requests = core_->num_requests,
          .num_refused = core_->num_refused,
          .num_evicted = core_->num_evicted,
          .num_open = core_->num_open,
          .num_active = core_->num_active};
}

}  // namespace pelago::serve
