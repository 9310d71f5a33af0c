// What a handler of requests sees of HTTP: a request that has come whole, and the reply in the
// making. Handlers know no sockets, so they can be tested without any; http_server.h carries the
// bytes.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pelago::serve {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method = {};   // "GET"
  std::string path = {};     // without the query, percent-decoded: "/v1/models"
  std::string query = {};    // as sent, without "?"
  HttpHeaders headers = {};  // names in lower case
  std::string body = {};
  std::string peer = {};  // the client's address, without the port
  bool is_tls = false;

  /// The first header of that name (in lower case); none if absent.
  std::optional<std::string_view> header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body = {};
  HttpHeaders headers = {};  // beside Content-Type, Content-Length and Connection
};

/// The answer to one request. All functions may be called from any thread and never block. A reply
/// that is dropped unanswered answers 500; one that is dropped between begin() and end() is cut.
class HttpReply {
 public:
  HttpReply() = default;
  HttpReply(const HttpReply&) = delete;
  HttpReply& operator=(const HttpReply&) = delete;
  virtual ~HttpReply() = default;

  /// The whole answer. One of send() and begin(), once; what comes later is ignored.
  virtual void send(HttpResponse response) = 0;
  /// The head of an answer whose body comes piece by piece, and the first piece (may be empty).
  virtual void begin(HttpResponse head) = 0;
  /// Queues the next piece. False: nobody will read it, since the client is gone or leaves too much
  /// unread (HttpServerOptions::unread_bytes_max): stop the work, and cut() or drop the reply.
  virtual bool write(std::string_view piece) = 0;
  /// The body is complete.
  virtual void end() = 0;
  /// Ends the connection so that the client sees that the body is not complete.
  virtual void cut() = 0;
  /// Calls back once if the client goes before the end, at once if it is gone already; on a thread
  /// of the server, so it must not block. At most one at a time: the last one set counts.
  virtual void on_gone(std::function<void()> callback) = 0;
};

/// shared: owners are the handler and whatever produces the answer later (an engine's callback).
using HttpReplyPtr = std::shared_ptr<HttpReply>;
using HttpHandler = std::function<void(HttpRequest, HttpReplyPtr)>;

/// "Not Found" of 404; "Unknown" of a number without a meaning.
std::string_view status_text(int status);

/// Decodes %41; none if an escape is broken or a control character (NUL, newline) is hidden in it.
std::optional<std::string> percent_decode(std::string_view text);

/// The value of a query's field ("a=1&b=2"), decoded; none if absent or broken.
std::optional<std::string> query_field(std::string_view query, std::string_view name);

/// Sets path and query of request from the first line's target ("/a%20b?c=d", also with scheme and
/// host in front). False if it is none.
bool split_target(std::string_view target, HttpRequest& request);

struct HttpHeadOptions {
  bool is_stream = false;   // no Content-Length
  bool is_chunked = false;  // a stream in chunks; HTTP/1.0 clients read until the end instead
  bool closes = false;      // "Connection: close"
};

/// Status line and headers, with the empty line. Header values are cleaned of line breaks.
std::string format_head(const HttpResponse& response, const HttpHeadOptions& options);

/// In lower case (ASCII).
std::string lower_case(std::string_view text);

}  // namespace pelago::serve
