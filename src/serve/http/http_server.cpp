#include "serve/http/http_server.h"

#include <sys/resource.h>

#include <algorithm>
#include <boost/asio/post.hpp>

#include "base/clock.h"
#include "base/error.h"
#include "serve/http/http_core.h"

namespace pelago::serve {

namespace {

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

}  // namespace

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
