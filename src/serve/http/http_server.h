// An HTTP/1.1 server for strangers: everything a client can make large or slow has a limit. One
// thread carries the bytes of all connections, a few others run the handlers. A client that goes
// away is noticed at once, whatever its request is waiting for.
//
//   HttpServer server({.host = "127.0.0.1", .port = 8000});
//   server.route("GET", "/health", [](HttpRequest, HttpReplyPtr reply) {
//     reply->send({.body = "{}"});
//   });
//   server.route("GET", "/*", static_files.handler());   // the longest prefix that fits wins
//   server.start();
//   ...
//   server.drain(30);
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "serve/http/messages.h"

namespace pelago::serve {

struct HttpServerOptions {
  std::string host = "127.0.0.1";           // an address; "0.0.0.0" and "::" are all of them
  int port = 0;                             // 0: any free one
  std::string certificate_path = {};        // PEM chain; with a key, TLS 1.2 and later only
  std::string key_path = {};                // PEM
  int num_handler_threads = 2;              // handlers parse and tokenise: short work
  size_t num_connections_max = 2048;        // past it the longest idle one gives way
  size_t header_bytes_max = 16 << 10;       // as nginx's and Apache's defaults, about
  size_t body_bytes_max = 32 << 20;         // a prompt of 10 MB, escaped
  size_t all_bodies_bytes_max = 256 << 20;  // of requests being read or waiting for a handler
  size_t unread_bytes_max = 1 << 20;        // of a stream; a client behind by more is cut
  double header_deadline_s = 10;            // for all of a request's header
  double body_deadline_s = 120;             // for its body
  double idle_s = 75;                       // between requests, as browsers expect
  double stall_s = 30;                      // in which a client must read something
  /// The body of the server's own errors (400, 404, 408, 413, 431, 503): plain text if not set.
  std::function<HttpResponse(int status, const std::string& message)> error_response = {};
};

struct HttpServerStats {
  uint64_t num_accepted = 0, num_requests = 0, num_refused = 0, num_evicted = 0;
  int64_t num_open = 0;    // connections
  int64_t num_active = 0;  // requests whose answer is not complete
};

class HttpServerCore;  // http_core.h

class HttpServer {
 public:
  explicit HttpServer(HttpServerOptions options);
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;
  /// Stops at once; clients in the middle of an answer see it cut.
  ~HttpServer();

  /// Before start(). path: exact, or a prefix that ends in "/*". HEAD goes where GET does; another
  /// method than those of a path is answered 405. A handler may keep the reply and answer later.
  /// What it throws is logged and answered 500.
  void route(const std::string& method, const std::string& path, HttpHandler handler);

  /// Listens. Throws Failure naming address and port if they cannot be had, or the file if
  /// certificate or key cannot be read.
  void start();
  int port() const;  // once started

  /// Takes no more connections, closes idle ones, and waits until all answers are complete, at most
  /// deadline_s. Then stops. Returns false if answers had to be cut.
  bool drain(double deadline_s);

  HttpServerStats stats() const;

 private:
  std::shared_ptr<HttpServerCore> core_;  // owners: this, and each connection while its reply lives
};

}  // namespace pelago::serve
